#include "scheduler/service/object_server.h"

#include <algorithm>
#include <vector>

#include "scheduler/protocol/data_port.h"
#include "scheduler/service/executor_logs.h"
#include "storage/artifacts.h"

namespace saesweep::scheduler {
namespace {

using protocol::DataReply;
using protocol::DataRequest;

bool is_of_sweep(const std::string& object) { return object.starts_with("files/"); }

Error not_named(const std::string& object) {
  return {ErrorCode::kNotFound, fmt::format("no sweep names {}", object)};
}

Result<void> list(const storage::ObjectStore& store, SweepFiles* named,
                  const protocol::DataList& wanted, DataReply& reply) {
  const std::string& object = wanted.object();
  if (is_of_sweep(object) && named == nullptr) return fail(not_named(object));
  SAE_TRY(const auto files, is_of_sweep(object) ? named->list(object) : store.list(object));
  for (const storage::ObjectFile& file : files) {
    protocol::DataFile& one = *reply.add_files();
    one.set_name(file.name);
    one.set_bytes(file.bytes);
    one.set_sha256(file.digest.hex());
  }
  return {};
}

Result<void> read(const storage::ObjectStore& store, const SweepFiles* named,
                  const protocol::DataRead& wanted, DataReply& reply) {
  const std::string& object = wanted.object();
  const std::uint32_t bytes = std::min(wanted.bytes(), protocol::kPieceBytes);
  if (is_of_sweep(object) && named == nullptr) return fail(not_named(object));
  SAE_TRY(*reply.mutable_data(), is_of_sweep(object)
                                     ? named->read(object, wanted.file(), wanted.offset(), bytes)
                                     : store.read(object, wanted.file(), wanted.offset(), bytes));
  return {};
}

Result<void> write(storage::ObjectStore& store, const protocol::DataWrite& piece) {
  return store.write(piece.upload(), piece.file(), piece.offset(),
                     std::as_bytes(std::span(piece.data())));
}

Result<void> keep(storage::ObjectStore& store, const protocol::DataKeep& wanted) {
  if (is_of_sweep(wanted.object()))
    return fail(ErrorCode::kInvalidArgument, "{} is not a worker's to keep", wanted.object());
  std::vector<storage::ObjectFile> files;
  for (const protocol::DataFile& file : wanted.files()) {
    SAE_TRY(const Sha256 digest, storage::parse_sha256(file.sha256()));
    files.push_back({file.name(), file.bytes(), digest});
  }
  return store.keep(wanted.upload(), wanted.object(), files);
}

Result<void> act(storage::ObjectStore& store, SweepFiles* files, const DataRequest& request,
                 DataReply& reply) {
  switch (request.what_case()) {
    case DataRequest::kList:
      return list(store, files, request.list(), reply);
    case DataRequest::kRead:
      return read(store, files, request.read(), reply);
    case DataRequest::kWrite:
      return write(store, request.write());
    case DataRequest::kKeep:
      return keep(store, request.keep());
    case DataRequest::kLog:
      return write_log(store.root(), request.log().name(), request.log().offset(),
                       request.log().data());
    case DataRequest::kChunk:  // workers have those
    case DataRequest::WHAT_NOT_SET:
      break;
  }
  return fail(ErrorCode::kInvalidArgument, "a data request that asks for nothing we have");
}

}  // namespace

DataReply answer_data_request(storage::ObjectStore& store, const DataRequest& request,
                              SweepFiles* files) {
  DataReply reply;
  reply.set_status(protocol::DATA_STATUS_OK);
  if (const auto done = act(store, files, request, reply); !done) {
    reply.clear_files();
    reply.clear_data();
    reply.set_status(protocol::to_status(done.error().code));
    reply.set_problem(done.error().message.substr(0, 1024));
  }
  return reply;
}

}  // namespace saesweep::scheduler
