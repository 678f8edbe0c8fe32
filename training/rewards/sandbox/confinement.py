"""What keeps a candidate program in: namespaces, Landlock, seccomp and resource limits, by system calls.

Standard library only: the zygote imports this in a bare interpreter. Linux on x86-64 and arm64; anywhere else
nothing is confined, and `Level.missing` says so.

    namespaces  user, mount, network, IPC, host name: entered once by the zygote; a new process namespace and a
                new mount namespace with an empty scratch folder for every run
    Landlock    files can be read below the standard library and a few system folders, written in the scratch
                folder only; no TCP; no signals to processes outside
    seccomp     no new processes or threads, no other program, no sockets, no tracing, no mounts, no keys, no BPF
    limits      processor time, memory, file size, open files; no core dumps; no capabilities
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x00020000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x08000000, 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP = 1, 22, 38, 24
_LANDLOCK = (444, 445, 446)  # create_ruleset, add_rule, restrict_self: the same on every architecture

# Which access rights a kernel's Landlock version knows, as bits of LANDLOCK_ACCESS_FS_*.
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_READ = (1 << 2) | (1 << 3)  # READ_FILE, READ_DIR
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
_READABLE = ("/usr/lib", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")

# Refused system calls: name -> number on (x86-64, arm64); None where there is none.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "clone": (56, 220), "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211),
    "sendmmsg": (307, 269), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "kcmp": (312, 272), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "mount_setattr": (442, 442), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "acct": (163, 89), "quotactl": (179, 60), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162),
    "personality": (135, 92), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "lookup_dcookie": (212, 18), "ioperm": (173, None), "iopl": (172, None), "modify_ldt": (154, None),
    "syslog": (103, 116), "vhangup": (153, 58), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190),
    "mq_open": (240, 180), "memfd_create": (319, 279), "memfd_secret": (447, 447), "fanotify_init": (300, 262),
    "setpriority": (141, 140), "sched_setattr": (314, 274), "sched_setscheduler": (144, 119),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "set_mempolicy": (238, 237), "mbind": (237, 235),
}  # fmt: skip
_CLONE3 = 435  # answered with "no such call", so that the C library falls back to clone, which is refused
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}


@dataclass(frozen=True)
class Limits:
    """What one run may use. seconds : wall clock; cpu_seconds : whole, of the processor; *_bytes : as named."""

    seconds: float = 5.0
    cpu_seconds: int = 5
    memory_bytes: int = 512 << 20
    file_bytes: int = 8 << 20
    scratch_bytes: int = 16 << 20
    output_bytes: int = 1 << 20


def enter_namespaces() -> list[str]:
    """Leave the machine's user, mount, network, IPC and host-name namespaces; returns what could not be left.

    Inside, the process is root over nothing: its capabilities hold for the new namespaces only.
    """
    user, group = os.geteuid(), os.getegid()
    flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    if not hasattr(_libc, "unshare") or _libc.unshare(flags) != 0:
        return ["namespaces"]
    try:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"0 {user} 1")
        _write("/proc/self/gid_map", f"0 {group} 1")
    except OSError:
        return ["namespaces"]
    return [] if _libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None) == 0 else ["mount namespace"]


def fork_into_new_namespaces() -> int:
    """As os.fork, but the child is process 1 of a process namespace of its own, with its own mounts.

    When it dies, the kernel kills everything that it started. Raises OSError.
    """
    number = {"x86_64": 56, "aarch64": 220}[platform.machine()]
    python = ctypes.pythonapi
    caller = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter's lock, as os.fork does
    python.PyOS_BeforeFork()
    process = caller.syscall(number, CLONE_NEWPID | CLONE_NEWNS | 17, 0, 0, 0, 0)  # 17: SIGCHLD
    problem = ctypes.get_errno()
    if process == 0:
        python.PyOS_AfterFork_Child()
        return 0
    python.PyOS_AfterFork_Parent()
    if process < 0:
        raise OSError(problem, os.strerror(problem))
    return int(process)


def confine(scratch: str, limits: Limits) -> list[str]:
    """Confine this process for good, working in the empty folder `scratch`; returns what could not be had.

    Only what is open already stays open: see to it that this is little.
    """
    missing: list[str] = []
    options = f"size={limits.scratch_bytes},nr_inodes=1024,mode=0700".encode()
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    if _libc.mount(b"tmpfs", scratch.encode(), b"tmpfs", flags, options) != 0:
        missing.append("scratch folder of limited size")
    os.chdir(scratch)
    _set_limits(limits)
    _libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        missing.append("no_new_privs")
    if not _landlock(scratch):
        missing.append("Landlock")
    _drop_capabilities()
    if not _seccomp():
        missing.append("seccomp")
    return missing


def _set_limits(limits: Limits) -> None:
    for what, value in (
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 1),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        hard = resource.getrlimit(what)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, value))


def _landlock(scratch: str) -> bool:
    create, add, restrict = _LANDLOCK
    version = _libc.syscall(create, None, 0, 1)
    if version < 1:
        return False
    rights = (1 << _FS_RIGHTS.get(version, 16)) - 1
    # struct landlock_ruleset_attr { __u64 handled_access_fs, handled_access_net, scoped; }
    words = [rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0]
    attributes = struct.pack("3Q", *words)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = _libc.syscall(create, attributes, len(attributes), 0)
    if rules < 0:
        return False
    allowed = [*_ALLOWED, (scratch, rights & ~1)]  # all but EXECUTE
    done = all(_allow(add, rules, path, rights & wanted) for path, wanted in allowed)
    done = done and _libc.syscall(restrict, rules, 0) == 0
    os.close(rules)
    return done


def _allowed() -> list[tuple[str, int]]:
    """What every candidate may read, with the rights; READ_DIR is for folders."""
    library = str(Path(os.__file__).resolve().parent)
    readable = sorted({*_READABLE, library, str(Path(sys.base_prefix) / "lib")})
    allowed = [(path, _READ if Path(path).is_dir() else 1 << 2) for path in readable]
    return allowed + [(path, (1 << 1) | (1 << 2)) for path in _DEVICES]  # WRITE_FILE, READ_FILE


_ALLOWED = _allowed()  # looked up once, in the zygote: it was a sixth of a child's start


def _allow(add: int, rules: int, path: str, rights: int) -> bool:
    """Allow `rights` at and below `path`; a path that is not there needs no rule."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return True
    # struct landlock_path_beneath_attr { __u64 allowed_access; __s32 parent_fd; } packed
    rule = struct.pack("=Qi", rights, place)
    done = _libc.syscall(add, rules, 1, rule, 0) == 0
    os.close(place)
    return done


def _drop_capabilities() -> None:
    for number in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            break
    header = struct.pack("Ii", 0x20080522, 0)
    capset = {"x86_64": 126, "aarch64": 91}.get(platform.machine())
    if capset is not None:
        _libc.syscall(capset, header, bytes(24))


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def _filter() -> ctypes.Array[ctypes.c_char] | None:
    """The seccomp filter as instructions of classic BPF, eight bytes each; None for an unknown architecture."""
    if platform.machine() not in _ARCHITECTURES:
        return None
    architecture, column = _ARCHITECTURES[platform.machine()]
    numbers = sorted(number for pair in _REFUSED.values() if (number := pair[column]) is not None)
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    allow, refuse, unknown, kill = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38, 0x80000000
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (answer, 0, 0, kill), (load, 0, 0, 0)]
    program += [(at_least, 0, 1, 0x40000000), (answer, 0, 0, kill)]  # the x32 numbers of x86-64
    program += [(equal, 0, 1, _CLONE3), (answer, 0, 0, unknown)]
    for number in numbers:
        program += [(equal, 0, 1, number), (answer, 0, 0, refuse)]
    program.append((answer, 0, 0, allow))
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    return ctypes.create_string_buffer(code, len(code))


_FILTER = _filter()  # made once, in the zygote


def _seccomp() -> bool:
    if _FILTER is None:
        return False
    program = _Program(len(_FILTER) // 8, ctypes.addressof(_FILTER))
    return _libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0) == 0


def _write(path: str, text: str) -> None:
    Path(path).write_text(text)
