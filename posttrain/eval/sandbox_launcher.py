"""What a sandboxed process begins as: it locks itself in by the kernel's means, then runs a role. Stdlib only.

Run as `python -I -S -B sandbox_launcher.py JSON`, the environment empty and the source on standard input. Every lock is
the kernel's: what the program does to this interpreter changes none. Exit status: 0 the role ended well, 1 it did not,
97 a lock is missing (its name is on standard error); an init process gives it, which the program cannot signal.
"""

import builtins
import collections
import contextlib
import ctypes
import json
import os
import resource
import signal
import struct
import sys
import time

MISSING = 97
NOBODY = 65534
NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
KEPT = NOSUID | NODEV | NOEXEC | 1024 | 2048  # the last two: noatime, nodiratime
DETACH = 2
SET_PDEATHSIG, SET_DUMPABLE, SET_SECCOMP, CAPBSET_DROP, SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
PIVOT_ROOT, CAPSET = 155, 126  # system calls of x86_64

# x86_64 numbers of what no honest solution needs: network, other processes' memory, mounts, namespaces, keys, modules,
# shared memory of System V, and newer doors (io_uring, userfaultfd, bpf).
DENIED = (
    29, 41, 42, 43, 44, 49, 50, 53, 64, 68, 101, 103, 135, 153, 154, 155, 159, 161, 163, 164, 165, 166, 167, 168, 169,
    170, 171, 172, 173, 175, 176, 179, 212, 227, 240, 246, 248, 249, 250, 272, 298, 303, 304, 305, 308, 310, 311, 312,
    313, 319, 320, 321, 323, 424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 438, 442, 447)
CLONE, CLONE3 = 56, 435
X86_64, X32 = 0xC000003E, 0x40000000

libc = ctypes.CDLL(None, use_errno=True)


class Missing(Exception):
    """A lock that this machine does not offer."""


def must(name, result):
    if result == -1:
        raise Missing(f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def leave_root():
    """Become nobody for the whole machine, where this is root -> where Python's folder lies for nobody."""
    python = sys.base_prefix
    if os.geteuid() == 0:
        if not python.startswith("/usr"):  # it may lie in root's home, which nobody can enter
            must("mount namespace", libc.unshare(NEWNS))
            mount(None, "/", None, REC | PRIVATE)
            place = free_folder(0)
            mount("none", place, "tmpfs", NOSUID | NODEV, "size=1m,mode=755")
            python = place + "/python"
            os.mkdir(python, 0o755)
            mount(sys.base_prefix, python, None, BIND | REC)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        must("dumpable", libc.prctl(SET_DUMPABLE, 1, 0, 0, 0))  # or /proc/self would stay root's
    return python


def free_folder(number):
    """A folder to mount over, without Python in it."""
    folders = [p for p in ("/mnt", "/media", "/srv", "/opt", "/tmp") if os.path.isdir(p)]
    return [p for p in folders if not sys.base_prefix.startswith(p)][number]


def new_namespaces():
    """User, process, network, mount and IPC namespaces of its own; inside, the user is nobody."""
    uid, gid = os.geteuid(), os.getegid()
    must("user, process, network, mount and IPC namespaces",
         libc.unshare(NEWUSER | NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS))
    try:
        for name, line in (("setgroups", "deny"), ("gid_map", f"{NOBODY} {gid} 1"), ("uid_map", f"{NOBODY} {uid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)
    except OSError as e:
        raise Missing(f"user namespace: {e}") from None


def mount(source, target, kind=None, flags=0, data=None):
    encoded = [None if x is None else x.encode() for x in (source, target, kind, data)]
    must(f"mount namespace ({target})", libc.mount(*encoded[:3], ctypes.c_ulong(flags), encoded[3]))


def new_root(megabytes, python):
    """A root that holds Python and the system's libraries, read-only, and an empty /tmp of so many megabytes."""
    mount(None, "/", None, REC | PRIVATE)
    wanted = {"/usr", "/lib", "/lib64", sys.base_prefix}
    root = free_folder(1)
    mount("none", root, "tmpfs", NOSUID | NODEV, "size=1m,mode=755")
    for path in sorted(wanted, key=len):
        inside = root + path
        if os.path.islink(path):
            os.symlink(os.readlink(path), inside)
        elif not any(path != w and path.startswith(w + "/") for w in wanted) and os.path.isdir(
                source := python if path == sys.base_prefix else path):
            os.makedirs(inside, exist_ok=True)
            mount(source, inside, None, BIND | REC)
            kept = os.statvfs(source).f_flag & KEPT  # a namespace of its own may not loosen these
            mount(None, inside, None, REMOUNT | BIND | RDONLY | NOSUID | NODEV | kept)
    for name in ("tmp", "dev", "old"):
        os.mkdir(f"{root}/{name}")
    for name in ("null", "urandom"):
        with open(f"{root}/dev/{name}", "w"):
            pass
        mount(f"/dev/{name}", f"{root}/dev/{name}", None, BIND)
    mount("none", f"{root}/tmp", "tmpfs", NOSUID | NODEV | NOEXEC, f"size={megabytes}m,mode=700,nr_inodes=4096")
    os.chdir(root)
    must("pivot_root", libc.syscall(PIVOT_ROOT, b".", b"old"))
    must("mount namespace (old root)", libc.umount2(b"/old", DETACH))
    os.rmdir("/old")
    mount(None, "/", None, REMOUNT | BIND | RDONLY | NOSUID | NODEV)
    os.chdir("/tmp")


def drop_capabilities():
    must("no_new_privs", libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    for capability in range(64):
        if libc.prctl(CAPBSET_DROP, capability, 0, 0, 0) == -1:
            break  # beyond the last that this kernel knows
    header, empty = ctypes.create_string_buffer(struct.pack("II", 0x20080522, 0)), ctypes.create_string_buffer(24)
    must("capabilities", libc.syscall(CAPSET, header, empty))


def limit(limits):
    """Processes, memory, file size, CPU seconds, open files; no core files, no message queues."""
    for name, value in (("NPROC", limits["processes"]), ("AS", limits["memory"]), ("FSIZE", limits["file_size"]),
                        ("CPU", limits["cpu_seconds"]), ("NOFILE", 64), ("CORE", 0), ("MSGQUEUE", 0)):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def filter_calls():
    """seccomp: the calls in DENIED fail with EPERM, a clone into new namespaces too, clone3 with ENOSYS."""
    allow, kill, refuse, absent = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
    load, equal, at_least, some_bits, ret = 0x20, 0x15, 0x35, 0x45, 0x06
    lines = [(load, 0, 0, 4), (equal, 1, 0, X86_64), (ret, 0, 0, kill), (load, 0, 0, 0), (at_least, 0, 1, X32),
             (ret, 0, 0, kill)]
    for number in DENIED:
        lines += [(equal, 0, 1, number), (ret, 0, 0, refuse)]
    lines += [(equal, 0, 1, CLONE3), (ret, 0, 0, absent), (equal, 0, 3, CLONE), (load, 0, 0, 16),
              (some_bits, 0, 1, NEWNS | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET | NEWCGROUP), (ret, 0, 0, refuse),
              (ret, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    program = Program(len(lines), ctypes.addressof(code))
    must("seccomp", libc.prctl(SET_SECCOMP, 2, ctypes.byref(program), 0, 0))


def lock(limits):
    """Everything after the namespaces, in the process that becomes the program."""
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1):
        os.dup2(null, number)
    os.close(null)
    os.setsid()
    limit(limits)
    drop_capabilities()
    filter_calls()


def wait_for(child):
    """0 where it ended by itself with 0, else 1; only one status is told apart, that of a missing lock."""
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code in (0, MISSING) else 1


def supervise(order, role):
    """The init of the new process namespace: builds the root, starts the program, and ends the namespace with it."""
    libc.prctl(SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    ready, told = os.pipe()
    try:
        new_root(order["limits"]["disk_megabytes"], order["python"])
    except (Missing, OSError) as e:
        tell_missing(e)
    child = os.fork()
    if child == 0:
        os.close(ready)
        try:
            lock(order["limits"])
        except (Missing, OSError, ValueError) as e:
            os.write(told, str(e).encode()[:500] or b"?")
            os._exit(1)
        os.close(told)
        os._exit(role(order))
    os.close(told)
    for number in order["fds"]:
        os.close(number)
    if trouble := os.read(ready, 500):  # the program cannot write here: its end is closed before it begins
        tell_missing(trouble.decode("utf-8", "replace"))
    os._exit(0 if wait_for(child) == 0 else 1)


def tell_missing(what):
    os.write(2, f"{what}\n".encode())
    os._exit(MISSING)


def main(roles):
    order = json.loads(sys.argv[1])
    role, order["source"] = roles[order["role"]], sys.stdin.read()
    sys.set_int_max_str_digits(0)
    libc.prctl(SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        tell_missing("the filter of system calls is known for Linux on x86_64 only")
    try:
        order["python"] = leave_root()
        libc.prctl(SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # changing the user has cleared it
        new_namespaces()
        ended = []
        signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
        child = os.fork()
    except (Missing, OSError) as e:
        tell_missing(e)
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        supervise(order, role)
    for number in order["fds"]:
        os.close(number)
    deadline = time.monotonic() + order["limits"]["seconds"]
    while time.monotonic() < deadline and not ended:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code in (0, MISSING) else 1)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)  # init dies, and everything in its namespace with it
    os.waitpid(child, 0)  # returns when the namespace is empty
    os._exit(1)


def plain(value, depth=0):
    """A value as JSON that says its exact type; anything but plain data is refused, an object that equals everything
    among it."""
    kind = type(value)
    if depth > 50:
        raise TypeError("nested too deeply")
    if value is None or kind in (bool, int, str):
        return {"t": kind.__name__, "v": str(value) if kind is int else value}
    if kind is float:
        return {"t": "float", "v": value.hex()}
    if kind is complex:
        return {"t": "complex", "v": [value.real.hex(), value.imag.hex()]}
    if kind in (bytes, bytearray):
        return {"t": kind.__name__, "v": value.hex()}
    if kind in (list, tuple, set, frozenset):
        return {"t": kind.__name__, "v": [plain(x, depth + 1) for x in value]}
    if kind in (dict, collections.Counter, collections.OrderedDict, collections.defaultdict):  # equal to a plain one
        return {"t": "dict", "v": [[plain(k, depth + 1), plain(v, depth + 1)] for k, v in value.items()]}
    raise TypeError(f"a {kind.__name__} is no plain data")


def value_of(made):
    """The value that `plain` wrote."""
    kind, value = made["t"], made["v"]
    if kind == "NoneType":
        return None
    if kind == "int":
        return int(value)
    if kind in ("bool", "str"):
        if type(value) is not {"bool": bool, "str": str}[kind]:
            raise TypeError("a value that is not of its type")
        return value
    if kind == "float":
        return float.fromhex(value)
    if kind == "complex":
        return complex(*map(float.fromhex, value))
    if kind in ("bytes", "bytearray"):
        return {"bytes": bytes, "bytearray": bytearray}[kind].fromhex(value)
    if kind == "dict":
        return {value_of(k): value_of(v) for k, v in value}
    return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](map(value_of, value))


def answer_calls(order):
    """The candidate's side: run its source, then answer calls until there are no more."""
    reader, writer = os.fdopen(order["fds"][0], "r"), os.fdopen(order["fds"][1], "w")
    space = {"__name__": "candidate"}
    exec(compile(order["source"], "candidate", "exec"), space)
    for line in reader:
        name, args, named = json.loads(line)
        try:
            made = {"value": plain(space[name](*map(value_of, args), **{k: value_of(v) for k, v in named.items()}))}
        except BaseException as e:
            made = {"error": type(e).__name__}
        writer.write(json.dumps(made) + "\n")
        writer.flush()
    return 0


class Remote:
    """A function that runs in the candidate's sandbox; what comes back is plain data or an exception."""

    def __init__(self, name, reader, writer):
        self.name, self.reader, self.writer = name, reader, writer

    def __call__(self, *args, **named):
        call = [self.name, [plain(a) for a in args], {k: plain(v) for k, v in named.items()}]
        self.writer.write(json.dumps(call) + "\n")
        self.writer.flush()
        line = self.reader.readline()
        if not line:
            raise RuntimeError("the program has ended")
        reply = json.loads(line)
        if "error" in reply:
            kind = getattr(builtins, str(reply["error"]), RuntimeError)
            raise (kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError)(self.name)
        return value_of(reply["value"])


def run_tests(order):
    """The tests' side: what precedes the tests, then the tests, whose functions live in the candidate's sandbox."""
    reader, writer = os.fdopen(order["fds"][0], "r"), os.fdopen(order["fds"][1], "w")
    job, space = json.loads(order["source"]), {"__name__": "tests"}
    try:
        with contextlib.suppress(SyntaxError):  # a prompt that only continues is no program of its own
            exec(compile(job["before"], "before", "exec"), space)
        space |= {name: Remote(name, reader, writer) for name in job["names"]}
        exec(compile(job["test"], "test", "exec"), space)
    except BaseException as e:
        os.write(2, f"{type(e).__name__}: {e}".encode("utf-8", "replace")[:3000])
        return 1
    return 0


if __name__ == "__main__":
    main({"candidate": answer_calls, "tests": run_tests})
