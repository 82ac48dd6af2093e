#include "scheduler/protocol/message_json.h"

#include <google/protobuf/message.h>
#include <google/protobuf/util/json_util.h>

namespace saesweep::protocol {

Result<std::string> message_json(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string text;
  const auto status = google::protobuf::util::MessageToJsonString(message, &text, options);
  if (!status.ok())
    return fail(ErrorCode::kCorrupted, "cannot write {} as JSON: {}", message.GetTypeName(),
                std::string(status.message()));
  return text;
}

Result<void> parse_message_json(std::string_view text, google::protobuf::Message& message) {
  const auto status = google::protobuf::util::JsonStringToMessage(
      {text.data(), static_cast<std::size_t>(text.size())}, &message);
  if (!status.ok())
    return fail(ErrorCode::kInvalidArgument, "no {}: {}", message.GetTypeName(),
                std::string(status.message()));
  return {};
}

}  // namespace saesweep::protocol
