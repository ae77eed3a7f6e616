"""posttrain: turn a base language model into an assistant, and see every token that was trained."""

__version__ = "0.1.0"

# Name -> module that defines it; fetched on first use, so that `import posttrain` imports no torch
# (tests/cli/test_light.py::test_importing_the_package_imports_no_torch).
_LAZY = {**dict.fromkeys(("sft", "reward", "dpo", "orpo", "kto", "ppo", "grpo", "online_dpo"), "posttrain.app.train"),
         "load": "posttrain.app.assistant", "builtin_model_path": "posttrain.builtin"}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'posttrain' has no attribute {name!r}")
    from importlib import import_module

    from .core.process import settle_process

    settle_process()
    return getattr(import_module(_LAZY[name]), name)


def __dir__():
    return sorted(__all__)
