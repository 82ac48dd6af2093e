#include "scheduler/service/data_desk.h"

#include <string_view>
#include <system_error>

#include "scheduler/service/object_server.h"

namespace saesweep::scheduler {

Result<DataDesk> DataDesk::open(const std::string& endpoint,
                                const protocol::ServerSecurity& security,
                                const std::filesystem::path& store) {
  SAE_TRY(storage::ObjectStore opened, storage::ObjectStore::open(store));
  std::unique_ptr<Objects> objects(new Objects{.store = std::move(opened)});
  SAE_TRY(protocol::DataServer server,
          protocol::DataServer::start(
              endpoint, security, [raw = objects.get()](const protocol::DataRequest& request) {
                return answer_data_request(raw->store, request, &raw->files);
              }));
  return DataDesk(std::move(objects), std::move(server));
}

bool is_there(const std::filesystem::path& store, const protocol::Checkpointed& checkpointed) {
  return !checkpointed.travelled() || is_there(store, checkpointed.checkpoint());
}

bool is_there(const std::filesystem::path& store, const protocol::CheckpointRef& checkpoint) {
  std::error_code ignored;
  return storage::is_object_name(checkpoint.path()) &&
         std::filesystem::is_directory(store / checkpoint.path(), ignored);
}

}  // namespace saesweep::scheduler
