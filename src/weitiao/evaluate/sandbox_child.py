"""The inside of the sandbox (sandbox.py): a script of the standard library alone, which gives up its rights, then runs a
program.

    python -I sandbox_child.py FOLDER FD SECONDS MEMORY_MB FOLDER_MB OPEN_FILES        stdin: secret, line feed, program

Landlock: Salaün 2021, Documentation/userspace-api/landlock.rst. seccomp: Documentation/userspace-api/seccomp_filter.rst.
"""

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
import sysconfig

UNAVAILABLE = 77
READ_SEARCH = 2  # CAP_DAC_READ_SEARCH: Python itself may lie in another user's folder; Landlock says what is read
LIBC = ctypes.CDLL(None, use_errno=True)

# -- files: Landlock -----------------------------------------------------------------------------------------------------

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # system calls, the same on all machines
READ = 0b1100  # READ_FILE, READ_DIR
WITH_FILES = 0b110  # the rights that a single file can have: WRITE_FILE, READ_FILE
RIGHTS_BY_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # bits: reading, writing, making, removing ...


def restrict_files(folder: str) -> None:
    """Write in the folder only; read there and what Python needs."""
    version = LIBC.syscall(CREATE_RULESET, None, 0, 1)
    if version < 1:
        give_up("no Landlock")
    rights = (1 << RIGHTS_BY_VERSION[min(version, 5)]) - 1
    attributes = struct.pack("Q", rights)
    ruleset = LIBC.syscall(CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        give_up("Landlock refuses")
    allow(ruleset, folder, rights & ~1)  # all but EXECUTE
    paths = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values()}
    for path in sorted(paths | {"/usr", "/lib", "/lib64", "/dev/urandom", "/dev/null", "/etc/ld.so.cache"}):
        if os.path.exists(path):
            allow(ruleset, path, READ if os.path.isdir(path) else READ & WITH_FILES)
    if LIBC.syscall(RESTRICT_SELF, ruleset, 0):
        give_up("Landlock refuses")
    os.close(ruleset)


def allow(ruleset: int, path: str, rights: int) -> None:
    """Allow something beneath a path."""
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    if LIBC.syscall(ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, place), 0):
        give_up("Landlock refuses")
    os.close(place)


# -- system calls: seccomp -----------------------------------------------------------------------------------------------

CLONE_THREAD = 0x00010000
LOAD, JUMP_IF_EQUAL, JUMP_IF_ANY, RETURN = 0x20, 0x15, 0x45, 0x06  # BPF
ALLOWED, KILLED, REFUSED = 0x7FFF0000, 0x80000000, 0x00050000
X32 = 0x40000000  # the same calls under other numbers
REFUSED_EVERYWHERE = {  # the same numbers on all machines
    "pidfd_send_signal": 424, "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fspick": 433,
    "pidfd_open": 434, "pidfd_getfd": 438, "mount_setattr": 442,
}  # fmt: skip
MACHINES = {
    "x86_64": (0xC000003E, 56, {
        "socket": 41, "connect": 42, "bind": 49, "listen": 50, "socketpair": 53, "fork": 57, "vfork": 58, "execve": 59,
        "kill": 62, "ptrace": 101, "setpgid": 109, "setsid": 112, "rt_sigqueueinfo": 129, "setpriority": 141,
        "sched_setscheduler": 144, "chroot": 161, "mount": 165, "umount2": 166, "tkill": 200, "sched_setaffinity": 203,
        "tgkill": 234, "add_key": 248, "request_key": 249, "keyctl": 250, "unshare": 272, "perf_event_open": 298,
        "rt_tgsigqueueinfo": 297, "prlimit64": 302, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311,
        "bpf": 321, "execveat": 322, "userfaultfd": 323,
    }),
    "aarch64": (0xC00000B7, 220, {
        "umount2": 39, "mount": 40, "chroot": 51, "unshare": 97, "ptrace": 117, "sched_setscheduler": 119,
        "sched_setaffinity": 122, "kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "setpriority": 140,
        "setpgid": 154, "setsid": 157, "socket": 198, "socketpair": 199, "bind": 200, "listen": 201, "connect": 203,
        "add_key": 217, "request_key": 218, "keyctl": 219, "execve": 221, "rt_tgsigqueueinfo": 240,
        "perf_event_open": 241, "prlimit64": 261, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271,
        "bpf": 280, "execveat": 281, "userfaultfd": 282,
    }),
}  # fmt: skip
CLONE3 = 435


def restrict_calls() -> None:
    """No network, no processes (threads may be made), no signals, no other programs, no way around."""
    if platform.machine() not in MACHINES:
        give_up(platform.machine())
    architecture, clone, calls = MACHINES[platform.machine()]
    program = [
        (LOAD, 0, 0, 4),  # the architecture
        (JUMP_IF_EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILLED),
        (LOAD, 0, 0, 0),  # the call's number
        (JUMP_IF_ANY, 0, 1, X32),
        (RETURN, 0, 0, KILLED),
        (JUMP_IF_EQUAL, 0, 1, CLONE3),
        (RETURN, 0, 0, REFUSED | errno.ENOSYS),  # libc then uses clone, whose flags can be seen
        (JUMP_IF_EQUAL, 0, 4, clone),
        (LOAD, 0, 0, 16),  # its flags
        (JUMP_IF_ANY, 1, 0, CLONE_THREAD),
        (RETURN, 0, 0, REFUSED | errno.EPERM),
        (RETURN, 0, 0, ALLOWED),
    ]
    for number in (*calls.values(), *REFUSED_EVERYWHERE.values()):
        program += [(JUMP_IF_EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSED | errno.EPERM)]
    program.append((RETURN, 0, 0, ALLOWED))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *x) for x in program))
    filters = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    if LIBC.prctl(22, 2, ctypes.byref(filters), 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        give_up("no seccomp")


# -- all of it -------------------------------------------------------------------------------------------------------------


def give_up(reason: str) -> None:
    """End, as there is no such sandbox here."""
    sys.stderr.write(reason + "\n")
    sys.stderr.flush()
    os._exit(UNAVAILABLE)


def drop_capabilities() -> None:
    """Of a root user: all powers but one."""
    header = struct.pack("=Ii", 0x20080522, 0)  # version 3, this process
    kept = struct.pack("=6I", 1 << READ_SEARCH, 1 << READ_SEARCH, 0, 0, 0, 0)
    if LIBC.capset(header, kept):
        give_up("capset refuses")


def bound(seconds: float, memory_mb: int, folder_mb: int, open_files: int) -> None:
    """Bounds on this process, which it cannot raise again."""
    limits = {
        resource.RLIMIT_CPU: int(seconds) + 1,
        resource.RLIMIT_AS: memory_mb * 2**20,
        resource.RLIMIT_FSIZE: folder_mb * 2**20,
        resource.RLIMIT_NOFILE: open_files,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for kind, limit in limits.items():
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))


def main() -> None:
    folder, fd = sys.argv[1], int(sys.argv[2])
    seconds, (memory_mb, folder_mb, open_files) = float(sys.argv[3]), map(int, sys.argv[4:7])
    secret, _, program = sys.stdin.buffer.read().partition(b"\n")
    if os.geteuid() == 0:
        drop_capabilities()
    if LIBC.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        give_up("no PR_SET_NO_NEW_PRIVS")
    LIBC.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG: it does not outlive its parent
    restrict_files(folder)
    bound(seconds, memory_mb, folder_mb, open_files)
    restrict_calls()
    code = compile(program, "answer.py", "exec")
    exec(code, {"__name__": "__main__", "__builtins__": __builtins__})
    os.write(fd, secret)


if __name__ == "__main__":
    try:
        main()
    except SystemExit:
        sys.stderr.write("SystemExit\n")
        os._exit(1)
