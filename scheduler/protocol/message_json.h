// A message as JSON and back, for exports that people and programs read: names as in the .proto
// file, 64-bit numbers as text, bytes as base64, as protobuf's JSON mapping has it.
#pragma once

#include <string>
#include <string_view>

#include "core/result.h"

namespace google::protobuf {
class Message;
}

namespace saesweep::protocol {

// One line. Errors: kCorrupted for text in it that is no UTF-8.
Result<std::string> message_json(const google::protobuf::Message& message);
// Errors: kInvalidArgument for text that is none, or names a field that the message does not have.
Result<void> parse_message_json(std::string_view text, google::protobuf::Message& message);

}  // namespace saesweep::protocol
