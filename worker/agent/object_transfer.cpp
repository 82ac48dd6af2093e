#include "worker/agent/object_transfer.h"

#include <algorithm>
#include <random>
#include <vector>

#include "storage/artifacts.h"

namespace saesweep::agent {
namespace {

using protocol::DataReply;
using protocol::DataRequest;
using storage::ObjectFile;

// Of one transfer: two agents that send the same object do not mix their pieces.
std::string new_upload_name() {
  std::random_device random;
  std::string name = "up";
  for (int i = 0; i < 4; ++i) name += fmt::format("-{:08x}", random());
  return name;
}

// Walks over the pieces of some files, in order. An empty file has one piece of no bytes.
class Pieces {
 public:
  explicit Pieces(const std::vector<ObjectFile>& files) : files_(files) {}
  struct Piece {
    const ObjectFile* file;
    std::uint64_t offset;
    std::uint32_t bytes;
  };
  bool next(Piece& piece) {
    if (at_ == files_.size()) return false;
    const ObjectFile& file = files_[at_];
    piece = {&file, offset_,
             static_cast<std::uint32_t>(
                 std::min<std::uint64_t>(protocol::kPieceBytes, file.bytes - offset_))};
    offset_ += piece.bytes;
    if (offset_ == file.bytes) {
      ++at_;
      offset_ = 0;
    }
    return true;
  }

 private:
  const std::vector<ObjectFile>& files_;
  std::size_t at_ = 0;
  std::uint64_t offset_ = 0;
};

Result<std::vector<ObjectFile>> list_remote(protocol::DataClient& client, const std::string& object,
                                            const std::stop_token& stop) {
  DataRequest request;
  request.mutable_list()->set_object(object);
  SAE_TRY(const DataReply reply, client.ask(std::move(request), stop));
  std::vector<ObjectFile> files;
  for (const protocol::DataFile& file : reply.files()) {
    SAE_TRY(const Sha256 digest, storage::parse_sha256(file.sha256()));
    files.push_back({file.name(), file.bytes(), digest});
  }
  return files;
}

}  // namespace

Result<void> push_object(protocol::DataClient& client, const storage::ObjectStore& from,
                         const std::string& object, const std::stop_token& stop) {
  SAE_TRY(const std::vector<ObjectFile> files, from.list(object));
  const auto there = list_remote(client, object, stop);
  if (there) return {};
  if (there.error().code != ErrorCode::kNotFound) return fail(there.error());

  const std::string upload = new_upload_name();
  Pieces pieces(files);
  SAE_TRY_VOID(client.exchange(
      [&](DataRequest& request) -> Result<bool> {
        Pieces::Piece piece{};
        if (!pieces.next(piece)) return false;
        protocol::DataWrite& write = *request.mutable_write();
        write.set_upload(upload);
        write.set_file(piece.file->name);
        write.set_offset(piece.offset);
        SAE_TRY(*write.mutable_data(),
                from.read(object, piece.file->name, piece.offset, piece.bytes));
        return true;
      },
      [](const DataRequest&, const DataReply&) -> Result<void> { return {}; }, stop));

  DataRequest last;
  protocol::DataKeep& keep = *last.mutable_keep();
  keep.set_upload(upload);
  keep.set_object(object);
  for (const ObjectFile& file : files) {
    protocol::DataFile& one = *keep.add_files();
    one.set_name(file.name);
    one.set_bytes(file.bytes);
    one.set_sha256(file.digest.hex());
  }
  SAE_TRY_VOID(client.ask(std::move(last), stop));
  return {};
}

Result<void> pull_object(protocol::DataClient& client, storage::ObjectStore& to,
                         const std::string& object, const std::stop_token& stop) {
  if (to.contains(object)) return {};
  SAE_TRY(const std::vector<ObjectFile> files, list_remote(client, object, stop));
  const std::string upload = new_upload_name();
  Pieces pieces(files);
  const auto received = client.exchange(
      [&](DataRequest& request) -> Result<bool> {
        Pieces::Piece piece{};
        if (!pieces.next(piece)) return false;
        protocol::DataRead& read = *request.mutable_read();
        read.set_object(object);
        read.set_file(piece.file->name);
        read.set_offset(piece.offset);
        read.set_bytes(piece.bytes);
        return true;
      },
      [&](const DataRequest& request, const DataReply& reply) -> Result<void> {
        if (reply.data().size() != request.read().bytes())
          return fail(ErrorCode::kCorrupted, "{}: {} bytes of {} at {}; {} would be right", object,
                      reply.data().size(), request.read().file(), request.read().offset(),
                      request.read().bytes());
        return to.write(upload, request.read().file(), request.read().offset(),
                        std::as_bytes(std::span(reply.data())));
      },
      stop);
  if (!received) {
    to.drop(upload);
    return fail(received.error());
  }
  return to.keep(upload, object, files);
}

}  // namespace saesweep::agent
