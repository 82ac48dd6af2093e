// A message between scheduler and agent: [header 40 bytes][body], two ZeroMQ frames.
//
//   off  type  field (little-endian)
//   0    u32   magic 0x31575353, "SSW1"
//   4    u8    major version
//   5    u8    minor version
//   6    u8    message type
//   7    u8    flags: 1 reliable, 2 retransmission, 8 the first word over a new connection
//   8    u64   session: low half of the sender's session id, see conversation.h
//   16   u64   seq: 1, 2, 3, ... for reliable messages, 0 otherwise
//   24   u64   ack: highest contiguous reliable seq received from the peer
//   32   u32   credit: how many more reliable messages the sender takes beyond `ack`
//   36   u32   CRC-32C of the body
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "core/result.h"

namespace saesweep::protocol {

inline constexpr std::uint8_t kMajorVersion = 1;
inline constexpr std::uint8_t kMinorVersion = 0;
inline constexpr std::size_t kHeaderBytes = 40;
inline constexpr std::size_t kMaxBodyBytes = std::size_t{8} << 20;

// Never reuse a number.
enum class MessageType : std::uint8_t {
  kHello = 1,
  kWelcome = 2,
  kReject = 3,
  kHeartbeat = 4,
  kHeartbeatAck = 5,
  kAssign = 6,
  kAssignReply = 7,
  kStarted = 8,
  kProgress = 9,
  kCheckpointed = 11,
  kResult = 12,
  kResultAck = 13,
  kControl = 14,
  kControlDone = 15,
  kBye = 18,
  kResync = 19,
  kQuery = 22,
  kQueryReply = 23,
  kAcknowledge = 24,  // between two links: only its header says something
  kDataRequest = 32,  // on the data port
  kDataReply = 33,
};
bool is_known(MessageType type);
std::string_view to_string(MessageType type);

inline constexpr std::uint8_t kReliable = 1;
inline constexpr std::uint8_t kRetransmission = 2;
// What the other side sent over the connection before may be lost: it is to be sent again.
inline constexpr std::uint8_t kNewConnection = 8;

struct Header {
  std::uint8_t major = kMajorVersion;
  std::uint8_t minor = kMinorVersion;
  MessageType type = MessageType::kHello;
  std::uint8_t flags = 0;
  std::uint64_t session = 0;
  std::uint64_t seq = 0;
  std::uint64_t ack = 0;
  std::uint32_t credit = 0;
  bool operator==(const Header&) const = default;
};

std::array<std::byte, kHeaderBytes> encode_header(const Header& header,
                                                  std::span<const std::byte> body);
// Errors: kCorrupted for bytes that are no header of this protocol or no body of this header;
// kInvalidArgument for another major version.
Result<Header> decode_header(std::span<const std::byte> in, std::span<const std::byte> body);

}  // namespace saesweep::protocol
