// Any bytes as a key file or an access bundle: refused, or read to what is written the same again.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "scheduler/protocol/keys.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace saesweep::protocol;  // NOLINT(google-build-using-namespace): its own scope
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto keys = parse_key_pair(text)) {
    const auto again = parse_key_pair(key_pair_text(*keys).text());
    if (!again || again->public_key != keys->public_key ||
        again->secret_key.text() != keys->secret_key.text())
      std::abort();
  }
  if (const auto server = parse_server_file(text)) {
    const auto again = parse_server_file(server_file_text(*server));
    if (!again || again->public_key != server->public_key ||
        again->address.host != server->address.host ||
        again->address.worker_port != server->address.worker_port ||
        again->address.client_port != server->address.client_port)
      std::abort();
  }
  if (const auto key = parse_authorized(text, "w")) {
    const auto again = parse_authorized(authorized_text(*key), "w");
    if (!again || again->public_key != key->public_key || again->role != key->role ||
        again->expires != key->expires)
      std::abort();
  }
  if (const auto access = parse_access(text)) {
    const auto again = parse_access(access_text(*access).text());
    if (!again || again->name != access->name || again->role != access->role ||
        again->endpoint() != access->endpoint() || again->server != access->server ||
        again->keys.secret_key.text() != access->keys.secret_key.text())
      std::abort();
  }
  if (const auto key = parse_public_key(text))
    if (z85(*key) != text) std::abort();
  if (const auto time = parse_expiry(text))
    if (!expiry_text(*time).starts_with(text)) std::abort();
  (void)parse_role(text);
  (void)is_name(text);
  return 0;
}
