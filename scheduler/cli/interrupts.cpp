#include "scheduler/cli/interrupts.h"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>

#include "core/files.h"

namespace saesweep::cli {

Result<Interrupts> Interrupts::take(std::initializer_list<int> more) {
  sigset_t ours;
  sigemptyset(&ours);
  sigaddset(&ours, SIGINT);
  sigaddset(&ours, SIGTERM);
  for (const int number : more) sigaddset(&ours, number);
  ::pthread_sigmask(SIG_BLOCK, &ours, nullptr);
  ::signal(SIGPIPE, SIG_IGN);  // a closed socket or pipe is an error of the write
  const int file = ::signalfd(-1, &ours, SFD_CLOEXEC | SFD_NONBLOCK);
  if (file < 0) return fail(system_error(errno, "signalfd"));
  return Interrupts(file);
}

Interrupts::~Interrupts() {
  if (file_ >= 0) ::close(file_);
}

int Interrupts::wait(std::chrono::milliseconds patience) {
  pollfd waiting{file_, POLLIN, 0};
  if (::poll(&waiting, 1, static_cast<int>(patience.count())) <= 0) return 0;
  signalfd_siginfo info{};
  return ::read(file_, &info, sizeof info) == sizeof info ? static_cast<int>(info.ssi_signo) : 0;
}

}  // namespace saesweep::cli
