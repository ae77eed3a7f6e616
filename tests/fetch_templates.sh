#!/bin/sh
# Fetch the chat templates that ship inside the trl wheel (Apache-2.0) for tests/data/test_templates_matrix.py.
# They are test input only and never enter the repository: they lie in the virtual environment.
set -eu
cd "$(dirname "$0")/.."
version=1.16.0
folder=.venv/chat_templates-$version
if [ -d "$folder" ]; then exit 0; fi
wheel=$(mktemp -d)
trap 'rm -rf "$wheel"' EXIT
.venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --dest "$wheel" "trl==$version"
.venv/bin/python - "$wheel" "$folder" <<'EOF'
import pathlib, sys, zipfile
wheel = next(pathlib.Path(sys.argv[1]).glob("trl-*.whl"))
made = pathlib.Path(sys.argv[2] + ".part")
made.mkdir(parents=True, exist_ok=True)
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        if name.startswith("trl/chat_templates/") and name.endswith(".jinja"):
            (made / pathlib.PurePosixPath(name).name).write_bytes(archive.read(name))
made.rename(sys.argv[2])
print(f"{len(list(pathlib.Path(sys.argv[2]).iterdir()))} chat templates in {sys.argv[2]}")
EOF
