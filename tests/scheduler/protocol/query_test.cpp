#include "scheduler/protocol/query.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <thread>

#include "core/thread.h"
#include "tests/support/temp_dir.h"

namespace saesweep::protocol {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

struct Queries : testing::Test {
  test::TempDir dir;
  std::string endpoint = "ipc://" + (dir.path() / "clients").string();

  // Answers with `reply` until the test ends.
  using Reply = std::function<void(QueryServer&, const HeardQuery&)>;
  std::jthread serve(Reply reply) {
    return run_thread("server", [this, reply](std::stop_token stop) {
      QueryServer server = QueryServer::bind(endpoint).value();
      while (!stop.stop_requested()) {
        for (const HeardQuery& query : server.take()) reply(server, query);
        std::this_thread::yield();
      }
    });
  }
};

TEST_F(Queries, AnAnswerComesBackWithWhatWasAsked) {
  const auto server = serve([](QueryServer& to, const HeardQuery& query) {
    to.answer(query.asker, {{"verb", query.verb}, {"body", query.body}, {"key", query.key}});
  });
  QueryClient client = QueryClient::connect(endpoint).value();
  const auto answer = client.ask({.verb = "status", .body = {{"sweep", "a"}}, .key = "k"}, 20s);
  ASSERT_TRUE(answer) << answer.error().message;
  EXPECT_EQ(*answer, (Json{{"verb", "status"}, {"body", {{"sweep", "a"}}}, {"key", "k"}}));
}

TEST_F(Queries, WhatIsLargerThanAMessageArrivesWholeBothWays) {
  const auto server = serve([](QueryServer& to, const HeardQuery& query) {
    to.answer(query.asker, {{"text", query.payload}});
  });
  QueryClient client = QueryClient::connect(endpoint).value();
  std::string large;
  for (std::size_t i = 0; large.size() < 9 * QueryServer::kPieceBytes / 2; ++i)
    large += std::to_string(i) + ",";
  const auto answer = client.ask({.verb = "submit", .key = "k", .payload = large}, 60s);
  ASSERT_TRUE(answer) << answer.error().message;
  EXPECT_TRUE(answer->at("text") == large);
}

TEST_F(Queries, ARefusalKeepsItsCodeAndItsWords) {
  const auto server = serve([](QueryServer& to, const HeardQuery& query) {
    to.refuse(query.asker, {ErrorCode::kNotFound, "no sweep of that name"});
  });
  QueryClient client = QueryClient::connect(endpoint).value();
  const auto answer = client.ask({.verb = "status"}, 20s);
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().code, ErrorCode::kNotFound);
  EXPECT_EQ(answer.error().message, "no sweep of that name");
}

TEST_F(Queries, AQuestionThatIsNotAnsweredIsAskedAgainUnderItsId) {
  std::atomic<int> heard = 0;
  const auto server = serve([&](QueryServer& to, const HeardQuery& query) {
    if (++heard == 2) to.answer(query.asker, {{"heard", 2}});
  });
  QueryClient client = QueryClient::connect(endpoint).value();
  const auto answer = client.ask({.verb = "status"}, 60s);
  ASSERT_TRUE(answer) << answer.error().message;
  EXPECT_EQ(heard, 2);
}

TEST_F(Queries, WithoutAServerAskingEnds) {
  QueryClient client = QueryClient::connect(endpoint).value();
  const auto answer = client.ask({.verb = "status"}, 20ms);
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().code, ErrorCode::kUnavailable);
}

TEST_F(Queries, AnAddressThatIsTakenOrNoneIsRefused) {
  const QueryServer first =
      QueryServer::bind("tcp://127.0.0.1:*", {.insecure_loopback = true}).value();
  const auto taken = QueryServer::bind(first.endpoint(), {.insecure_loopback = true});
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(QueryServer::bind("nowhere").error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(QueryClient::connect("nowhere").error().code, ErrorCode::kInvalidArgument);
}

TEST_F(Queries, EveryErrorHasItsWord) {
  for (int i = 0; i <= static_cast<int>(ErrorCode::kDiverged); ++i) {
    const auto code = static_cast<ErrorCode>(i);
    EXPECT_EQ(code_of(code_word(code)), code) << i;
  }
  EXPECT_EQ(code_of("something_new"), ErrorCode::kUnavailable);
}

TEST_F(Queries, KeysDiffer) {
  const std::string key = QueryClient::new_key();
  EXPECT_EQ(key.size(), 32u);
  EXPECT_NE(key, QueryClient::new_key());
}

}  // namespace
}  // namespace saesweep::protocol
