// What comes in at the data port: whatever the bytes, an answer, and nothing outside the store is
// read or written.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "scheduler/protocol/data.pb.h"
#include "scheduler/protocol/link.h"
#include "scheduler/service/object_server.h"
#include "tests/support/temp_dir.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace saesweep;
  static const test::TempDir dir;
  static auto store = storage::ObjectStore::open(dir.path() / "store").value();
  static scheduler::SweepFiles files;
  protocol::DataRequest request;
  if (!protocol::parse_body({reinterpret_cast<const char*>(data), size}, request)) return 0;
  // A byte far out makes a sparse file, which only slows the search.
  if (request.has_write() && request.write().offset() > 4096)
    request.mutable_write()->set_offset(4096);
  const protocol::DataReply reply = scheduler::answer_data_request(store, request, &files);
  if (reply.status() == protocol::DATA_STATUS_UNSPECIFIED) std::abort();
  for (const auto& entry : std::filesystem::directory_iterator(dir.path()))
    if (entry.path().filename() != "store") std::abort();
  return 0;
}
