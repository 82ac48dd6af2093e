#include "scheduler/service/object_server.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <string_view>

#include "core/files.h"
#include "core/json.h"
#include "scheduler/protocol/data_port.h"
#include "scheduler/protocol/sweep_paths.h"
#include "tests/support/temp_dir.h"

namespace saesweep::scheduler {
namespace {

using protocol::DataRequest;

struct ObjectServer : testing::Test {
  test::TempDir dir;
  storage::ObjectStore store = storage::ObjectStore::open(dir.path()).value();
  protocol::DataReply answer(const DataRequest& request) {
    return answer_data_request(store, request);
  }
};

TEST_F(ObjectServer, AnswersWithAStatusThatSaysWhatToDoNext) {
  DataRequest request;
  EXPECT_EQ(answer(request).status(), protocol::DATA_STATUS_REFUSED) << "asks for nothing";
  request.mutable_list()->set_object("trials/0123456789ab/f1/step-1");
  EXPECT_EQ(answer(request).status(), protocol::DATA_STATUS_NOT_FOUND);
  request.mutable_list()->set_object("../etc/passwd");
  EXPECT_EQ(answer(request).status(), protocol::DATA_STATUS_REFUSED);
  EXPECT_FALSE(answer(request).problem().empty());
  request.mutable_keep()->set_object("trials/0123456789ab/f1/step-1");
  request.mutable_keep()->set_upload("up");
  request.mutable_keep()->add_files()->set_sha256("no digest");
  EXPECT_EQ(answer(request).status(), protocol::DATA_STATUS_REFUSED);
}

TEST_F(ObjectServer, ReadsAtMostOnePieceAtATime) {
  const std::string text(protocol::kPieceBytes + 100, 'x');
  DataRequest write;
  write.mutable_write()->set_upload("up");
  write.mutable_write()->set_file("content");
  write.mutable_write()->set_data(text);
  ASSERT_EQ(answer(write).status(), protocol::DATA_STATUS_OK);
  const std::string name = "artifacts/" + sha256(text).hex();
  DataRequest keep;
  keep.mutable_keep()->set_upload("up");
  keep.mutable_keep()->set_object(name);
  auto& file = *keep.mutable_keep()->add_files();
  file.set_name("content");
  file.set_bytes(text.size());
  file.set_sha256(sha256(text).hex());
  ASSERT_EQ(answer(keep).status(), protocol::DATA_STATUS_OK) << answer(keep).problem();
  DataRequest read;
  read.mutable_read()->set_object(name);
  read.mutable_read()->set_file("content");
  read.mutable_read()->set_bytes(~0u);
  EXPECT_EQ(answer(read).data().size(), protocol::kPieceBytes);
}

TEST_F(ObjectServer, FilesThatASweepNamesAreRead) {
  const std::filesystem::path model = dir.path() / "model";
  std::filesystem::create_directories(model / "deeper");
  ASSERT_TRUE(write_file_atomically(model / "config.json", std::string_view("{}")));
  ASSERT_TRUE(write_file_atomically(model / "model.safetensors", std::string_view("weights")));
  ASSERT_TRUE(write_file_atomically(model / "notes.txt", std::string_view("private")));
  const std::string object = protocol::object_of_path(model.string());
  SweepFiles files;
  DataRequest list;
  list.mutable_list()->set_object(object);
  EXPECT_EQ(answer_data_request(store, list, &files).status(), protocol::DATA_STATUS_NOT_FOUND)
      << "no sweep names it";
  EXPECT_EQ(answer(list).status(), protocol::DATA_STATUS_NOT_FOUND);

  journal::TaskSpec task;
  task.set_spec(canonical_json({{"stream", {{"model", {{"path", model.string()}}}}},
                                {"init_path", (model / "model.safetensors").string()}}));
  files.add(task);
  const auto listed = answer_data_request(store, list, &files);
  ASSERT_EQ(listed.files_size(), 2) << listed.problem();
  EXPECT_EQ(listed.files(0).name(), "config.json");
  EXPECT_EQ(listed.files(1).sha256(), sha256("weights").hex());
  DataRequest read;
  read.mutable_read()->set_object(object);
  read.mutable_read()->set_file("model.safetensors");
  read.mutable_read()->set_offset(2);
  read.mutable_read()->set_bytes(100);
  EXPECT_EQ(answer_data_request(store, read, &files).data(), "ights");
  for (const char* other : {"../model/config.json", "absent.json", ""}) {
    read.mutable_read()->set_file(other);
    EXPECT_NE(answer_data_request(store, read, &files).status(), protocol::DATA_STATUS_OK) << other;
  }
  list.mutable_list()->set_object(protocol::object_of_path((model / "model.safetensors").string()));
  EXPECT_EQ(answer_data_request(store, list, &files).files_size(), 1);
  DataRequest keep;
  keep.mutable_keep()->set_object(object);
  keep.mutable_keep()->set_upload("up");
  EXPECT_EQ(answer_data_request(store, keep, &files).status(), protocol::DATA_STATUS_REFUSED)
      << "a worker changes nothing of it";
}

}  // namespace
}  // namespace saesweep::scheduler
