#include "scheduler/protocol/executor_channel.h"

#include <fcntl.h>
#include <google/protobuf/io/coded_stream.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>

#include "core/check.h"
#include "core/files.h"

namespace saesweep::protocol {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRecursionLimit = 16;
constexpr std::uint32_t kDescriptorFlag = std::uint32_t{1} << 31;  // in the length
constexpr std::size_t kMaxWaitingDescriptors = 16;

tl::unexpected<Error> gone() { return fail(ErrorCode::kUnavailable, "the other side is gone"); }

// Waits until `events` or the deadline; false at the deadline.
bool wait_for(int socket, short events, Clock::time_point deadline) {
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
    pollfd item{socket, events, 0};
    const int ready = ::poll(&item, 1, static_cast<int>(std::max<std::int64_t>(0, left.count())));
    if (ready > 0) return true;
    if (ready == 0) return false;
    if (errno != EINTR) return true;  // the call that follows will say what is wrong
  }
}

}  // namespace

struct ExecutorChannel::State {
  explicit State(int value) : socket(value) {}
  ~State() {
    for (const int descriptor : descriptors) ::close(descriptor);
    if (socket >= 0) ::close(socket);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  int socket;
  std::mutex sending;           // a message is written whole before the next
  std::string pending;          // bytes read and not yet a message
  std::deque<int> descriptors;  // that came with them
};

Result<std::pair<int, int>> ExecutorChannel::make_pair() {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)
    return fail(system_error(errno, "socketpair"));
  return std::pair(ends[0], ends[1]);
}

ExecutorChannel::ExecutorChannel(int socket) : state_(std::make_unique<State>(socket)) {
  SAE_CHECK(socket >= 0, "descriptor {}", socket);
  ::fcntl(socket, F_SETFL, ::fcntl(socket, F_GETFL) | O_NONBLOCK);
  ::fcntl(socket, F_SETFD, FD_CLOEXEC);
}
ExecutorChannel::ExecutorChannel(ExecutorChannel&&) noexcept = default;
ExecutorChannel& ExecutorChannel::operator=(ExecutorChannel&&) noexcept = default;
ExecutorChannel::~ExecutorChannel() = default;

int ExecutorChannel::socket() const { return state_->socket; }

Result<void> ExecutorChannel::send(const Envelope& envelope, int descriptor) {
  const std::size_t size = envelope.ByteSizeLong();
  if (size > kMaxMessageBytes)
    return fail(ErrorCode::kInvalidArgument, "a message of {} bytes; at most {} travel", size,
                kMaxMessageBytes);
  std::string bytes(4, '\0');
  const std::size_t head = descriptor >= 0 ? size | kDescriptorFlag : size;
  for (std::size_t i = 0; i < 4; ++i) bytes[i] = static_cast<char>((head >> (8 * i)) & 0xff);
  envelope.AppendToString(&bytes);

  const std::lock_guard lock(state_->sending);
  const auto deadline = Clock::now() + kSendPatience;
  std::size_t sent = 0;
  while (sent < bytes.size()) {
    iovec part{bytes.data() + sent, bytes.size() - sent};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    if (sent == 0 && descriptor >= 0) {
      message.msg_control = control.data();
      message.msg_controllen = control.size();
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(sizeof(int));
      std::memcpy(CMSG_DATA(header), &descriptor, sizeof(int));
    }
    const ssize_t count = ::sendmsg(state_->socket, &message, MSG_NOSIGNAL);
    if (count > 0) {
      sent += static_cast<std::size_t>(count);
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK) return gone();
    if (!wait_for(state_->socket, POLLOUT, deadline))
      return fail(ErrorCode::kUnavailable, "the other side has not read for {} s",
                  kSendPatience.count());
  }
  return {};
}

Result<std::optional<ExecutorChannel::Heard>> ExecutorChannel::receive(
    std::chrono::milliseconds patience) {
  const auto deadline = Clock::now() + patience;
  std::string& pending = state_->pending;
  while (true) {
    if (pending.size() >= 4) {
      std::uint32_t head = 0;
      for (std::size_t i = 0; i < 4; ++i)
        head |= std::uint32_t{static_cast<unsigned char>(pending[i])} << (8 * i);
      const std::uint32_t size = head & ~kDescriptorFlag;
      if (size > kMaxMessageBytes)
        return fail(ErrorCode::kCorrupted, "a message of {} bytes; at most {} travel", size,
                    kMaxMessageBytes);
      if (pending.size() >= 4 + std::size_t{size}) {
        Heard heard;
        google::protobuf::io::CodedInputStream input(
            reinterpret_cast<const std::uint8_t*>(pending.data()) + 4, static_cast<int>(size));
        input.SetRecursionLimit(kRecursionLimit);
        if (!heard.envelope.ParseFromCodedStream(&input) || !input.ConsumedEntireMessage())
          return fail(ErrorCode::kCorrupted, "{} bytes that are no message", size);
        pending.erase(0, 4 + std::size_t{size});
        // None is there if this process may open no more files.
        if ((head & kDescriptorFlag) != 0 && !state_->descriptors.empty()) {
          heard.descriptor = state_->descriptors.front();
          state_->descriptors.pop_front();
        }
        return std::optional<Heard>(std::move(heard));
      }
    }
    std::array<char, 64 << 10> buffer;
    iovec part{buffer.data(), buffer.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    alignas(cmsghdr) std::array<char, CMSG_SPACE(4 * sizeof(int))> control{};
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    const ssize_t count = ::recvmsg(state_->socket, &message, MSG_CMSG_CLOEXEC);
    if (count == 0) return gone();
    if (count < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN && errno != EWOULDBLOCK) return gone();
      if (!wait_for(state_->socket, POLLIN, deadline)) return std::optional<Heard>();
      continue;
    }
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
         header = CMSG_NXTHDR(&message, header)) {
      if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
      const std::size_t descriptors = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (std::size_t i = 0; i < descriptors; ++i) {
        int descriptor = -1;
        std::memcpy(&descriptor, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
        state_->descriptors.push_back(descriptor);
      }
    }
    if (state_->descriptors.size() > kMaxWaitingDescriptors)
      return fail(ErrorCode::kCorrupted, "{} descriptors that no message speaks of",
                  state_->descriptors.size());
    pending.append(buffer.data(), static_cast<std::size_t>(count));
  }
}

}  // namespace saesweep::protocol
