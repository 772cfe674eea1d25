"""Takes away from a process what Python lacks on Windows or macOS, before `gan` is imported.

Python imports this at its start where its folder is in PYTHONPATH; GAN_LACKS names the system.
Libraries that need more than Python has there, since they believe to be on Linux, come first, but
for those in GAN_UNUSED.
"""

import builtins
import errno
import importlib
import os
import shutil
import signal
import stat
import struct
import sys
import types
import warnings

PYTHONS = ("subprocess", "tempfile", "concurrent.futures.thread", "asyncio", "uuid", "zipfile")
LIBRARIES = (
    *("lmdb", "numpy", "torch", "torch._dynamo", "torch.distributed", "torch.export"),
    *("torch.distributed.elastic.multiprocessing.errors", "torch.profiler"),
    *("torch.utils.tensorboard", "torchvision", "safetensors.torch", "fontTools.ttLib", "tqdm"),
    *("hydra", "hydra.core.plugins", "PIL.Image", "PIL.ImageFont", "PIL.PngImagePlugin"),
    *("multiprocessing.pool", "multiprocessing.popen_spawn_posix"),
)
MACOS = "sched_getaffinity posix_fadvise pipe2 sched_setaffinity"
WINDOWS = f"""{MACOS} fork forkpty register_at_fork pread preadv pwrite pwritev sysconf fpathconf
    sysconf_names getloadavg statvfs fstatvfs getuid geteuid getgid getegid getpgid getpgrp
    getpriority getsid initgroups killpg setsid setpgid setuid setgid nice uname wait wait3 wait4
    waitid mkfifo mknod chown lchown fchown fchmod fchdir chroot sync fdatasync posix_fallocate
    sendfile lockf openpty ttyname ctermid getgrouplist getgroups confstr sched_yield
    O_CLOEXEC O_NONBLOCK O_NOFOLLOW O_DIRECTORY O_SYNC O_DSYNC O_NOCTTY O_ASYNC O_DIRECT O_NDELAY
    O_ACCMODE O_PATH O_TMPFILE WNOHANG WUNTRACED WCONTINUED WIFEXITED WEXITSTATUS WIFSIGNALED
    WTERMSIG WIFSTOPPED WSTOPSIG P_ALL P_PID RTLD_NOW RTLD_GLOBAL"""
SIGNALS = """SIGUSR1 SIGUSR2 SIGHUP SIGKILL SIGALRM SIGQUIT SIGPIPE SIGCHLD SIGCONT SIGSTOP SIGTSTP
    alarm setitimer getitimer pause sigwait sigpending siginterrupt pthread_kill pthread_sigmask"""
MODULES = ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog", "readline")
BINARY = 0x8000  # Windows' own O_BINARY, and nothing on a 64-bit Linux
SIZES = "hhqqi4x"  # of the struct flock


def take(owner, names):
    for name in names.split():
        if hasattr(owner, name):
            delattr(owner, name)


def macos():
    take(os, MACOS)
    resource = sys.modules.get("resource") or importlib.import_module("resource")
    take(resource, "RUSAGE_THREAD")


def windows():
    fcntl = importlib.import_module("fcntl")
    sys.modules["msvcrt"] = msvcrt(fcntl)
    files(fcntl)
    processes(signal.SIGKILL)
    disk_usage = shutil.disk_usage  # has a way of its own on Windows
    space = os.statvfs
    shutil.disk_usage = lambda path: with_(os, "statvfs", space, disk_usage, path)
    sys.modules.update(dict.fromkeys(MODULES))
    take(os, WINDOWS)
    take(signal, SIGNALS)
    shutil._use_fd_functions = shutil._USE_CP_SENDFILE = False


def with_(owner, name, value, act, *given):
    """Act while the owner has what was taken away."""
    setattr(owner, name, value)
    try:
        return act(*given)
    finally:
        delattr(owner, name)


def held(path, below=False):
    """Whether this process has a file open or mapped or, for a folder, one below it."""
    real = os.path.realpath(path)
    for name in os.listdir("/proc/self/fd"):
        try:
            found = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if found == real or (below and found.startswith(f"{real}/")):
            return True
    with OPEN("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        return any(line.rstrip().endswith(f" {real}") for line in maps)


OPEN = builtins.open


def files(fcntl):
    """Opening, locking, renaming and removing files as Windows does it."""
    original = {name: getattr(os, name) for name in WRAPPED}
    text = set()  # descriptors that were opened without O_BINARY

    def refuse(path):
        raise PermissionError(errno.EACCES, "The process cannot access the file", str(path))

    def opened(path, flags, *mode, **options):
        if os.path.isdir(path):
            refuse(path)
        descriptor = original["open"](path, flags & ~BINARY, *mode, **options)
        (text.discard if flags & BINARY else text.add)(descriptor)
        return descriptor

    def locked(descriptor, length):
        """Whether another descriptor has a lock on what is to be read or written now."""
        try:
            start = os.lseek(descriptor, 0, os.SEEK_CUR)
        except OSError:
            return False
        asked = struct.pack(SIZES, fcntl.F_RDLCK, os.SEEK_SET, start, length, 0)
        answer = struct.unpack(SIZES, fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))
        return answer[0] != fcntl.F_UNLCK

    def read(descriptor, length):
        if locked(descriptor, length):
            refuse(descriptor)
        content = original["read"](descriptor, length)
        if descriptor in text:
            content = content.replace(b"\r\n", b"\n").partition(b"\x1a")[0]
        return content

    def write(descriptor, content):
        if descriptor in text:
            content = bytes(content).replace(b"\n", b"\r\n")
        return original["write"](descriptor, content)

    def fsync(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & 3 == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        original["fsync"](descriptor)

    def removed(name):
        def remove(path, **options):
            if held(path):
                refuse(path)
            original[name](path, **options)

        return remove

    def moved(name):
        def move(source, target, **options):
            folder = stat.S_ISDIR(os.lstat(source).st_mode)
            if held(source, below=folder) or held(target):
                refuse(source)
            if os.path.lexists(target) and (folder or name == "rename"):
                raise FileExistsError(errno.EEXIST, "it exists already", str(target))
            original[name](source, target, **options)

        return move

    os.O_BINARY = BINARY
    os.open, os.read, os.write, os.fsync = opened, read, write, fsync
    os.unlink, os.remove = removed("unlink"), removed("remove")
    os.rename, os.replace = moved("rename"), moved("replace")


WRAPPED = "open", "read", "write", "fsync", "unlink", "remove", "rename", "replace", "kill"


def processes(deadly):
    kill, me = os.kill, os.getpid

    def terminate(process, status):
        """Ends a process at once; that it is this one makes no difference."""
        if process == me():
            os._exit(int(status))
        kill(process, deadly)

    def ended(child):
        """How a child is ended, which on Linux needs a signal."""
        if child.poll() is None:
            kill(child.pid, deadly)

    os.kill = terminate
    subprocess = sys.modules["subprocess"]
    subprocess.Popen.kill = subprocess.Popen.terminate = ended


def msvcrt(fcntl):
    """The module of Windows' that locks bytes of a file from where it was sought."""
    module = types.ModuleType("msvcrt")
    module.LK_UNLCK, module.LK_LOCK, module.LK_NBLCK, module.LK_RLCK, module.LK_NBRLCK = range(5)
    seek, now = os.lseek, os.SEEK_CUR

    def locking(descriptor, mode, length):
        start = seek(descriptor, 0, now)
        if start >= 1 << 31 or mode not in (module.LK_UNLCK, module.LK_NBLCK):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        kind = fcntl.F_UNLCK if mode == module.LK_UNLCK else fcntl.F_WRLCK
        wanted = struct.pack(SIZES, kind, os.SEEK_SET, start, length, 0)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None

    module.locking = locking
    return module


class Watcher:
    """Finds no module; it sees that the first of `gan` is about to be imported."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != "gan":
            return
        sys.meta_path.remove(self)
        first = [*PYTHONS, *(["numpy"] if name == "gan.data" else [])]  # a child that scans a store
        for module in (*PYTHONS, *LIBRARIES) if name == "gan" else first:
            if module not in os.environ.get("GAN_UNUSED", "").split():
                importlib.import_module(module)
        if name == "gan":
            sys.modules["hydra.core.plugins"].Plugins.instance()
        warnings.filterwarnings("error", category=EncodingWarning, module=r"gan\b")
        {"windows": windows, "macos": macos}[os.environ["GAN_LACKS"]]()


if "GAN_LACKS" in os.environ:
    sys.meta_path.insert(0, Watcher())
