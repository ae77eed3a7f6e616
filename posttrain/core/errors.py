"""The one error shape of the project: where, found, expected, fix."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend; the command line prints it without a traceback and exits 2.

    `message` is one sentence; `where` a file:line, key or folder; `found` and `expected` what stands there and what
    should; `fix` names a key or a command. Fields left out are not printed.
    """

    def __init__(self, message: str, *, where: str = "", found: str = "", expected: str = "", fix: str = ""):
        super().__init__(message)
        self.message, self.where, self.found, self.expected, self.fix = message, where, found, expected, fix

    def __str__(self) -> str:
        lines = [f"error: {self.message}"]
        for name in ("where", "found", "expected", "fix"):
            if text := getattr(self, name):
                lines.append(f"  {name + ':':<10}" + str(text).replace("\n", "\n" + " " * 12))
        return "\n".join(lines)

    def __reduce__(self):  # errors cross the pipe from the prefetch worker
        return (_rebuild, (type(self), self.message, self.where, self.found, self.expected, self.fix))


class RowError(UserError):
    """A row that cannot be read or understood (malformed, unknown role, …); governed by `bad_rows`."""


class WriteError(UserError):
    """Something could not be written: no space, a read-only disk, or what the system said."""


class SettingsError(UserError):
    """Every problem found in the settings, shown at once."""

    def __init__(self, errors: list[UserError]):
        super().__init__("; ".join(e.message for e in errors))
        self.errors = errors

    def __str__(self) -> str:
        return "\n".join(str(e) for e in self.errors)

    def __reduce__(self):
        return (SettingsError, (self.errors,))


def _rebuild(cls, message, where, found, expected, fix):
    return cls(message, where=where, found=found, expected=expected, fix=fix)
