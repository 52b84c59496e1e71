"""What Windows lacks: modules, and names of `os` and `signal`; of the last ones macOS has a part."""

_MODULES = """
_posixsubprocess crypt fcntl grp nis ossaudiodev posix pty pwd readline resource spwd syslog termios tty
"""

_OS = """
EX_OK O_CLOEXEC O_DIRECT O_DIRECTORY O_NOATIME O_NOFOLLOW O_NONBLOCK O_SYNC O_TMPFILE WCOREDUMP WEXITSTATUS WIFEXITED
WIFSIGNALED WNOHANG WTERMSIG chown chroot confstr copy_file_range ctermid eventfd fchmod fchown fdatasync fork forkpty
fpathconf fstatvfs getegid geteuid getgid getgrouplist getgroups getloadavg getpgid getpgrp getpriority getrandom
getresuid getsid getuid getxattr initgroups killpg lchown listxattr lockf major makedev memfd_create minor mkfifo mknod
nice openpty pathconf pipe2 posix_fadvise posix_fallocate posix_spawn posix_spawnp pread preadv pwrite pwritev readv
register_at_fork removexattr sched_getaffinity sched_getparam sched_getscheduler sched_setaffinity sched_setscheduler
sched_yield sendfile setegid seteuid setgid setgroups setpgid setpriority setsid setuid setxattr splice statvfs sync
sysconf tcgetpgrp tcsetpgrp ttyname uname wait wait3 wait4 waitid writev
"""

_SIGNAL = """
ITIMER_REAL SIGALRM SIGBUS SIGCHLD SIGCONT SIGHUP SIGIO SIGKILL SIGPIPE SIGPROF SIGQUIT SIGSTOP SIGTSTP SIGTTIN SIGTTOU
SIGURG SIGUSR1 SIGUSR2 SIGVTALRM SIGWINCH alarm getitimer pause pthread_kill pthread_sigmask setitimer siginterrupt
sigpending sigtimedwait sigwait
"""

MODULES = frozenset(_MODULES.split())
NAMES = {"os": frozenset(_OS.split()), "signal": frozenset(_SIGNAL.split())}
