#include "scheduler/protocol/frame.h"

#include "core/digest.h"

namespace saesweep::protocol {
namespace {

constexpr std::uint32_t kMagic = 0x31575353;

template <class T>
void put(std::array<std::byte, kHeaderBytes>& out, std::size_t at, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i)
    out[at + i] = static_cast<std::byte>((static_cast<std::uint64_t>(value) >> (8 * i)) & 0xff);
}

template <class T>
T get(std::span<const std::byte> in, std::size_t at) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i)
    value |= std::to_integer<std::uint64_t>(in[at + i]) << (8 * i);
  return static_cast<T>(value);
}

}  // namespace

std::string_view to_string(MessageType type) {
  switch (type) {
    case MessageType::kHello:
      return "HELLO";
    case MessageType::kWelcome:
      return "WELCOME";
    case MessageType::kReject:
      return "REJECT";
    case MessageType::kHeartbeat:
      return "HEARTBEAT";
    case MessageType::kHeartbeatAck:
      return "HEARTBEAT_ACK";
    case MessageType::kAssign:
      return "ASSIGN";
    case MessageType::kAssignReply:
      return "ASSIGN_REPLY";
    case MessageType::kStarted:
      return "STARTED";
    case MessageType::kProgress:
      return "PROGRESS";
    case MessageType::kCheckpointed:
      return "CHECKPOINTED";
    case MessageType::kResult:
      return "RESULT";
    case MessageType::kResultAck:
      return "RESULT_ACK";
    case MessageType::kControl:
      return "CONTROL";
    case MessageType::kControlDone:
      return "CONTROL_DONE";
    case MessageType::kBye:
      return "BYE";
    case MessageType::kAcknowledge:
      return "ACKNOWLEDGE";
    case MessageType::kResync:
      return "RESYNC";
    case MessageType::kQuery:
      return "QUERY";
    case MessageType::kQueryReply:
      return "REPLY";
    case MessageType::kDataRequest:
      return "DATA_REQUEST";
    case MessageType::kDataReply:
      return "DATA_REPLY";
  }
  return "unknown";
}

bool is_known(MessageType type) { return to_string(type) != "unknown"; }

std::array<std::byte, kHeaderBytes> encode_header(const Header& header,
                                                  std::span<const std::byte> body) {
  std::array<std::byte, kHeaderBytes> out{};
  put(out, 0, kMagic);
  put(out, 4, header.major);
  put(out, 5, header.minor);
  put(out, 6, static_cast<std::uint8_t>(header.type));
  put(out, 7, header.flags);
  put(out, 8, header.session);
  put(out, 16, header.seq);
  put(out, 24, header.ack);
  put(out, 32, header.credit);
  put(out, 36, crc32c(body));
  return out;
}

Result<Header> decode_header(std::span<const std::byte> in, std::span<const std::byte> body) {
  if (in.size() != kHeaderBytes)
    return fail(ErrorCode::kCorrupted, "a header of {} bytes; {} would be right", in.size(),
                kHeaderBytes);
  if (get<std::uint32_t>(in, 0) != kMagic)
    return fail(ErrorCode::kCorrupted, "no message of this protocol");
  Header header;
  header.major = get<std::uint8_t>(in, 4);
  header.minor = get<std::uint8_t>(in, 5);
  if (header.major != kMajorVersion)
    return fail(ErrorCode::kInvalidArgument, "protocol version {}.{}; {}.x is spoken here",
                header.major, header.minor, kMajorVersion);
  header.type = static_cast<MessageType>(get<std::uint8_t>(in, 6));
  if (!is_known(header.type))
    return fail(ErrorCode::kCorrupted, "message type {}", get<std::uint8_t>(in, 6));
  header.flags = get<std::uint8_t>(in, 7);
  header.session = get<std::uint64_t>(in, 8);
  header.seq = get<std::uint64_t>(in, 16);
  header.ack = get<std::uint64_t>(in, 24);
  header.credit = get<std::uint32_t>(in, 32);
  if (((header.flags & kReliable) != 0) != (header.seq != 0))
    return fail(ErrorCode::kCorrupted, "{} with flags {} and seq {}", to_string(header.type),
                header.flags, header.seq);
  if (body.size() > kMaxBodyBytes)
    return fail(ErrorCode::kCorrupted, "a body of {} bytes", body.size());
  if (get<std::uint32_t>(in, 36) != crc32c(body))
    return fail(ErrorCode::kCorrupted, "a body that is not what its header says");
  return header;
}

}  // namespace saesweep::protocol
