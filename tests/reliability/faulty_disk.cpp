// A disk that fails when told to: counts the system calls of this process that change something below a directory, and
// lets some of them fail, or the process die at one.
//
// By seccomp, not by a preloaded library: safetensors renames by an instruction of its own (rustix), libstdc++ and libc
// call within themselves, and none of that goes through a symbol that could be replaced. The kernel traps the calls;
// the handler of SIGSYS looks at their paths, and makes them itself with a mark that the filter lets through.
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/limits.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#else
#error "faulty_disk: no registers known of this processor"
#endif

namespace {

enum Kind { kDescriptor, kClose, kPath, kPathAt, kOpen, kOpenAt, kRefused };
struct Call {
  int number;
  const char* name;
  Kind kind;
};
// What saving may call. Where a path is renamed or linked it is the first that counts: both lie in the directory.
constexpr Call kCalls[] = {
    {SYS_write, "write", kDescriptor},
    {SYS_pwrite64, "pwrite", kDescriptor},
    {SYS_writev, "writev", kDescriptor},
    {SYS_pwritev, "pwritev", kDescriptor},
    {SYS_sendfile, "sendfile", kDescriptor},
    {SYS_ftruncate, "ftruncate", kDescriptor},
    {SYS_fallocate, "fallocate", kDescriptor},
    {SYS_fsync, "fsync", kDescriptor},
    {SYS_fdatasync, "fdatasync", kDescriptor},
    {SYS_fchmod, "fchmod", kDescriptor},
    {SYS_close, "close", kClose},
    {SYS_openat, "open", kOpenAt},
    {SYS_mkdirat, "mkdir", kPathAt},
    {SYS_unlinkat, "unlink", kPathAt},
    {SYS_renameat2, "rename", kPathAt},
    {SYS_renameat, "rename", kPathAt},
    {SYS_linkat, "link", kPathAt},
    {SYS_fchmodat, "chmod", kPathAt},
    {SYS_copy_file_range, "copy", kRefused},  // six arguments, no room for the mark; whoever calls it has another way
#ifdef __x86_64__
    {SYS_open, "open", kOpen},
    {SYS_creat, "open", kPath},
    {SYS_mkdir, "mkdir", kPath},
    {SYS_rmdir, "rmdir", kPath},
    {SYS_unlink, "unlink", kPath},
    {SYS_rename, "rename", kPath},
    {SYS_link, "link", kPath},
    {SYS_chmod, "chmod", kPath},
#endif
};
constexpr int kCallCount = sizeof(kCalls) / sizeof(kCalls[0]);
constexpr unsigned kMark = 0x7f5a11ed;  // in the sixth argument, which none of these calls has

char directory[PATH_MAX];
size_t directory_length;
long first_fault, fault_count;
int fault;  // an errno; 0: the process dies
int log_file = -1;
std::atomic<long> calls{0};

long really(long number, const unsigned long* a) { return syscall(number, a[0], a[1], a[2], a[3], a[4], kMark); }

void path_of_descriptor(int descriptor, char* out) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, out, PATH_MAX - 1);
  out[length < 0 ? 0 : length] = 0;
}

void path_at(int descriptor, const char* name, char* out) {
  if (name[0] == '/') {
    snprintf(out, PATH_MAX, "%s", name);
    return;
  }
  char base[PATH_MAX] = "";
  if (descriptor == AT_FDCWD) {
    if (!getcwd(base, sizeof base)) base[0] = 0;
  } else {
    path_of_descriptor(descriptor, base);
  }
  size_t length = strlen(base);
  snprintf(out, PATH_MAX, "%.*s/%s", int(length), base, name);
}

bool is_writable(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)); }

// Whether a call changes something below the directory; its path.
bool counts(const Call& call, const unsigned long* a, char* path) {
  path[0] = 0;
  switch (call.kind) {
    case kDescriptor:
      path_of_descriptor(int(a[0]), path);
      break;
    case kClose:
      if (!is_writable(fcntl(int(a[0]), F_GETFL))) return false;
      path_of_descriptor(int(a[0]), path);
      break;
    case kPath:
      path_at(AT_FDCWD, reinterpret_cast<const char*>(a[0]), path);
      break;
    case kPathAt:
      path_at(int(a[0]), reinterpret_cast<const char*>(a[1]), path);
      break;
    case kOpen:
      if (!is_writable(int(a[1]))) return false;
      path_at(AT_FDCWD, reinterpret_cast<const char*>(a[0]), path);
      break;
    case kOpenAt:
      if (!is_writable(int(a[2]))) return false;
      path_at(int(a[0]), reinterpret_cast<const char*>(a[1]), path);
      break;
    case kRefused:
      return false;
  }
  return strncmp(path, directory, directory_length) == 0 && (path[directory_length] == '/' || !path[directory_length]);
}

void note(long number, const char* name, const char* path) {
  char line[PATH_MAX + 64];
  int length = snprintf(line, sizeof line, "%ld %s %s\n", number, name, path);
  const unsigned long arguments[] = {(unsigned long)log_file, (unsigned long)line, (unsigned long)length, 0, 0};
  really(SYS_write, arguments);
}

long result(long number, unsigned long* a) {
  const Call* call = kCalls;
  while (call->number != number) ++call;
  if (call->kind == kRefused) return -ENOSYS;
  char path[PATH_MAX];
  if (counts(*call, a, path)) {
    const long mine = ++calls;
    note(mine, call->name, path);
    if (mine >= first_fault && mine < first_fault + fault_count) {
      if (fault == 0) {
        if (number == SYS_write) {  // torn
          a[2] /= 2;
          really(number, a);
        }
        kill(getpid(), SIGKILL);
      }
      if (call->kind == kClose) really(number, a);
      return -fault;
    }
  }
  const long value = really(number, a);
  return value == -1 ? -errno : value;
}

void on_call(int, siginfo_t* info, void* context) {
  const int saved = errno;
  mcontext_t& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
#ifdef __x86_64__
  greg_t* r = machine.gregs;
  unsigned long a[] = {(unsigned long)r[REG_RDI], (unsigned long)r[REG_RSI], (unsigned long)r[REG_RDX],
                       (unsigned long)r[REG_R10], (unsigned long)r[REG_R8]};
  r[REG_RAX] = result(info->si_syscall, a);
#else
  unsigned long a[] = {machine.regs[0], machine.regs[1], machine.regs[2], machine.regs[3], machine.regs[4]};
  machine.regs[0] = (unsigned long)result(info->si_syscall, a);
#endif
  errno = saved;
}

// Appends to `code` that a call from the code of libc or of safetensors is trapped; how many instructions, 0: not
// found.
unsigned short trap_from_libraries(sock_filter* code, int most) {
  FILE* maps = fopen("/proc/self/maps", "r");
  if (!maps) return 0;
  unsigned short n = 0;
  char line[PATH_MAX + 128], permissions[8];
  unsigned long long first, past;
  const unsigned ip = offsetof(seccomp_data, instruction_pointer);  // of what comes after the call
  while (n + 6 <= most && fgets(line, sizeof line, maps)) {
    const bool ours = strstr(line, "/libc.so") || strstr(line, "/libc-") || strstr(line, "safetensors");
    if (!ours || sscanf(line, "%llx-%llx %7s", &first, &past, permissions) != 3 || permissions[2] != 'x') continue;
    if (first >> 32 != past >> 32) continue;  // it would take two comparisons more: once in a thousand starts
    code[n++] = BPF_STMT(BPF_LD | BPF_W | BPF_ABS, ip + 4);
    code[n++] = BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)(first >> 32), 0, 4);
    code[n++] = BPF_STMT(BPF_LD | BPF_W | BPF_ABS, ip);
    code[n++] = BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, (unsigned)first, 0, 2);
    code[n++] = BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, (unsigned)past, 1, 0);
    code[n++] = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP);
  }
  fclose(maps);
  return n;
}

int install_filter() {
  sock_filter code[kCallCount + 128];
  unsigned short n = 0;
  code[n++] = BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, arch));
  code[n++] = BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0);
  code[n++] = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  code[n++] = BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr));
  for (int i = 0; i < kCallCount; ++i) {
    const unsigned char to_mark = static_cast<unsigned char>(kCallCount - i);
    code[n++] = BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)kCalls[i].number, to_mark, 0);
  }
  code[n++] = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  code[n++] = BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[5]));
  code[n++] = BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kMark, 0, 1);
  code[n++] = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  const unsigned short found = trap_from_libraries(code + n, 96);
  if (!found) return -ENOENT;
  n = static_cast<unsigned short>(n + found);
  code[n++] = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  sock_fprog program = {n, code};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -errno;
  const long done = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
  return done ? (done < 0 ? -errno : -EAGAIN) : 0;
}

}  // namespace

// From now on, for the rest of this process: calls `first` to `first + count - 1` (from 1) below `below`, an absolute
// path, fail with `error`, or the process dies at the first of them where that is 0. Every call is a line of `log`.
// Returns 0 or -errno.
extern "C" int faulty_disk(const char* below, long first, long count, int error, const char* log) {
  snprintf(directory, sizeof directory, "%s", below);
  directory_length = strlen(directory);
  first_fault = first;
  fault_count = count;
  fault = error;
  calls = 0;
  if (log_file >= 0) {  // armed already
    return 0;
  }
  log_file = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (log_file < 0) return -errno;
  struct sigaction action = {};
  action.sa_sigaction = on_call;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  if (sigaction(SIGSYS, &action, nullptr)) return -errno;
  return install_filter();
}
