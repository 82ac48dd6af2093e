// Any bytes as the two frames of a message: refused, or read to the same header and body again.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "scheduler/protocol/frame.h"
#include "scheduler/protocol/link.h"
#include "scheduler/protocol/messages.pb.h"

namespace {

using namespace saesweep::protocol;

template <class Body>
void read(const std::string& bytes) {
  Body body;
  if (!parse_body(bytes, body)) return;
  Body again;
  if (!parse_body(body.SerializeAsString(), again)) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto* bytes = reinterpret_cast<const std::byte*>(data);
  const std::size_t header_size = size < kHeaderBytes ? size : kHeaderBytes;
  const std::span<const std::byte> header(bytes, header_size);
  const std::span<const std::byte> body(bytes + header_size, size - header_size);
  if (const auto decoded = decode_header(header, body)) {
    const auto again = encode_header(*decoded, body);
    if (std::memcmp(again.data(), bytes, kHeaderBytes) != 0) std::abort();
  }
  // Hardly any random bytes pass the checksum: read the body as every message all the same.
  const std::string text(reinterpret_cast<const char*>(body.data()), body.size());
  read<Hello>(text);
  read<Heartbeat>(text);
  read<AssignReply>(text);
  read<Assign>(text);
  read<Progress>(text);
  read<Checkpointed>(text);
  read<TaskResult>(text);
  read<Control>(text);
  read<ControlDone>(text);
  read<Query>(text);
  read<QueryReply>(text);
  read<Envelope>(text);
  return 0;
}
