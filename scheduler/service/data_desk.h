// The scheduler's store at its data port: a thread of its own answers workers that do not see the
// store, so that the scheduler's loop waits for no bytes.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "core/result.h"
#include "scheduler/protocol/data_port.h"
#include "scheduler/protocol/messages.pb.h"
#include "scheduler/protocol/security.h"
#include "scheduler/service/sweep_files.h"
#include "storage/object_store.h"

namespace saesweep::scheduler {

class DataDesk {
 public:
  // Errors: as ObjectStore::open() and DataServer::start().
  static Result<DataDesk> open(const std::string& endpoint,
                               const protocol::ServerSecurity& security,
                               const std::filesystem::path& store);

  // Its files travel too.
  void add(const journal::TaskSpec& task) { objects_->files.add(task); }

  // As WELCOME says it: "tcp://*:PORT" where it listens at every address of this machine.
  std::string announced() const { return server_.announced(); }

 private:
  struct Objects {
    storage::ObjectStore store;
    SweepFiles files = {};
  };
  DataDesk(std::unique_ptr<Objects> objects, protocol::DataServer server)
      : objects_(std::move(objects)), server_(std::move(server)) {}
  std::unique_ptr<Objects> objects_;  // before who reads it
  protocol::DataServer server_;
};

// What came over a data port has to be there; of what did not, its sender's word is taken.
bool is_there(const std::filesystem::path& store, const protocol::Checkpointed& checkpointed);
// A checkpoint of the store, whoever wrote it.
bool is_there(const std::filesystem::path& store, const protocol::CheckpointRef& checkpoint);

}  // namespace saesweep::scheduler
