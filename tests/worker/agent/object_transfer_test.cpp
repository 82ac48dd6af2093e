#include "worker/agent/object_transfer.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <string>
#include <thread>

#include "core/files.h"
#include "scheduler/protocol/key_files.h"
#include "scheduler/service/object_server.h"
#include "tests/support/temp_dir.h"

namespace saesweep::agent {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using protocol::DataClient;
using protocol::DataReply;
using protocol::DataRequest;
using protocol::DataServer;

const std::string kCheckpoint = "trials/0123456789ab/f3/step-200";
constexpr DataClient::Patience kImpatient{.again = 20ms, .give_up = 10s};

struct ObjectTransfer : testing::Test {
  test::TempDir dir;
  storage::ObjectStore here = storage::ObjectStore::open(dir.path() / "here").value();
  storage::ObjectStore there = storage::ObjectStore::open(dir.path() / "there").value();
  std::stop_source stop;
  std::string endpoint = "ipc://" + (dir.path() / "data").string();

  DataServer serve(DataServer::Answer answer) {
    return std::move(DataServer::start(endpoint, {}, std::move(answer)).value());
  }
  DataServer serve() {
    return serve([this](const DataRequest& request) {
      return scheduler::answer_data_request(there, request);
    });
  }
  DataClient client(DataClient::Patience patience = kImpatient) {
    return std::move(DataClient::connect(endpoint, {}, patience).value());
  }
  // Three files, one of several pieces and one empty.
  static void make_checkpoint(const storage::ObjectStore& store) {
    fs::create_directories(store.root() / kCheckpoint);
    std::string large(3 * protocol::kPieceBytes + 17, '\0');
    for (std::size_t i = 0; i < large.size(); ++i) large[i] = static_cast<char>(i * 31 >> 7);
    ASSERT_TRUE(write_file_atomically(store.root() / kCheckpoint / "large", large));
    ASSERT_TRUE(write_file_atomically(store.root() / kCheckpoint / "empty", std::string_view()));
    ASSERT_TRUE(write_file_atomically(store.root() / kCheckpoint / "json", std::string_view("{}")));
  }
};

TEST_F(ObjectTransfer, WhatIsPushedAndPulledIsTheSame) {
  const DataServer server = serve();
  DataClient to = client();
  make_checkpoint(here);
  ASSERT_TRUE(push_object(to, here, kCheckpoint, stop.get_token()));
  EXPECT_EQ(there.list(kCheckpoint).value(), here.list(kCheckpoint).value());
  storage::ObjectStore third = storage::ObjectStore::open(dir.path() / "third").value();
  ASSERT_TRUE(pull_object(to, third, kCheckpoint, stop.get_token()));
  EXPECT_EQ(third.list(kCheckpoint).value(), here.list(kCheckpoint).value());
}

TEST_F(ObjectTransfer, WhatIsThereIsNotSentAgain) {
  make_checkpoint(here);
  make_checkpoint(there);
  std::atomic<int> writes = 0;
  const DataServer server = serve([&](const DataRequest& request) {
    if (request.has_write()) ++writes;
    return scheduler::answer_data_request(there, request);
  });
  DataClient to = client();
  ASSERT_TRUE(push_object(to, here, kCheckpoint, stop.get_token()));
  EXPECT_EQ(writes, 0);
}

// Requests overtake their own answers: most are asked and answered several times.
TEST_F(ObjectTransfer, RepeatedMessagesChangeNothing) {
  make_checkpoint(here);
  std::atomic<int> heard = 0;
  const DataServer server = serve([&](const DataRequest& request) {
    ++heard;
    (void)scheduler::answer_data_request(there, request);
    return scheduler::answer_data_request(there, request);
  });
  DataClient to = client({.again = 3ms, .give_up = 10s});
  ASSERT_TRUE(push_object(to, here, kCheckpoint, stop.get_token()));
  EXPECT_EQ(there.list(kCheckpoint).value(), here.list(kCheckpoint).value());
  storage::ObjectStore third = storage::ObjectStore::open(dir.path() / "third").value();
  ASSERT_TRUE(pull_object(to, third, kCheckpoint, stop.get_token()));
  EXPECT_EQ(third.list(kCheckpoint).value(), here.list(kCheckpoint).value());
  EXPECT_GT(heard, 12) << "nothing was repeated";
}

TEST_F(ObjectTransfer, AServerThatComesLateIsWaitedFor) {
  make_checkpoint(here);
  DataClient to = client();
  std::jthread pushing([&] { EXPECT_TRUE(push_object(to, here, kCheckpoint, stop.get_token())); });
  const DataServer server = serve();
  pushing.join();
  EXPECT_TRUE(there.contains(kCheckpoint));
}

TEST_F(ObjectTransfer, NobodyThereIsAnErrorInTime) {
  make_checkpoint(here);
  DataClient to = client({.again = 10ms, .give_up = 50ms});
  const auto pushed = push_object(to, here, kCheckpoint, stop.get_token());
  ASSERT_FALSE(pushed);
  EXPECT_EQ(pushed.error().code, ErrorCode::kUnavailable);
  stop.request_stop();
  DataClient stopped = client({.again = 1h, .give_up = 1h});
  EXPECT_EQ(push_object(stopped, here, kCheckpoint, stop.get_token()).error().message, "stopped");
}

TEST_F(ObjectTransfer, ErrorsOfTheOtherSideComeBackAsOurs) {
  const DataServer server = serve([&](const DataRequest& request) {
    DataReply reply = scheduler::answer_data_request(there, request);
    if (request.has_write()) {
      reply.set_status(protocol::DATA_STATUS_FULL);
      reply.set_problem("no space left");
    }
    return reply;
  });
  DataClient to = client();
  make_checkpoint(here);
  const auto pushed = push_object(to, here, kCheckpoint, stop.get_token());
  ASSERT_FALSE(pushed);
  EXPECT_EQ(pushed.error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(pushed.error().message, "no space left");
  EXPECT_EQ(pull_object(to, here, "trials/0123456789ab/f9/step-1", stop.get_token()).error().code,
            ErrorCode::kNotFound);
  EXPECT_EQ(push_object(to, here, "trials/0123456789ab/f9/step-1", stop.get_token()).error().code,
            ErrorCode::kNotFound);
}

TEST_F(ObjectTransfer, BytesThatChangeOnTheWayAreNotKept) {
  make_checkpoint(there);
  const DataServer server = serve([&](const DataRequest& request) {
    DataReply reply = scheduler::answer_data_request(there, request);
    if (request.has_read() && request.read().file() == "json") reply.set_data("{]");
    return reply;
  });
  DataClient to = client();
  EXPECT_EQ(pull_object(to, here, kCheckpoint, stop.get_token()).error().code,
            ErrorCode::kCorrupted);
  EXPECT_FALSE(here.contains(kCheckpoint));
}

TEST_F(ObjectTransfer, OverTcpOnlyAWorkersKeyIsHeard) {
  const fs::path keys = dir.path() / "keys";
  ASSERT_TRUE(protocol::init_key_directory(keys, {"127.0.0.1", 1, 2}));
  auto server = DataServer::start("tcp://127.0.0.1:*", protocol::read_server_security(keys).value(),
                                  [this](const DataRequest& request) {
                                    return scheduler::answer_data_request(there, request);
                                  });
  ASSERT_TRUE(server) << server.error().message;
  make_checkpoint(here);
  const auto as = [&](const char* bundle, DataClient::Patience patience) {
    return std::move(
        DataClient::connect(server->endpoint(),
                            protocol::client_security(protocol::read_access(keys / bundle).value()),
                            patience)
            .value());
  };
  DataClient client = as("client.access", {.again = 20ms, .give_up = 300ms});
  EXPECT_FALSE(push_object(client, here, kCheckpoint, stop.get_token()));
  EXPECT_GT(server->dropped(), 0u);
  DataClient worker = as("worker.access", kImpatient);
  EXPECT_TRUE(push_object(worker, here, kCheckpoint, stop.get_token()));
  EXPECT_TRUE(there.contains(kCheckpoint));
  EXPECT_FALSE(DataServer::start("tcp://127.0.0.1:*", {}, nullptr)) << "clear text is refused";
}

}  // namespace
}  // namespace saesweep::agent
