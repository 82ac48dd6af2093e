#include "scheduler/service/object_server.h"

#include <gtest/gtest.h>

#include "scheduler/protocol/data_port.h"
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

}  // namespace
}  // namespace saesweep::scheduler
