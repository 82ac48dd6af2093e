// Fewer messages, the same words in the same order.
#include "scheduler/service/reply_batch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace saesweep::scheduler {
namespace {

using testing::ElementsAre;
using testing::SizeIs;

Reply ack(const std::string& peer, const std::string& task) {
  protocol::ResultAck ack;
  ack.set_task(task);
  ack.set_fence(1);
  ack.set_verdict("committed");
  return {peer, ack};
}
Reply assign(const std::string& peer, std::uint64_t run, std::size_t bytes = 0) {
  protocol::Assign assign;
  protocol::Run& added = *assign.add_runs();
  added.set_run_id(run);
  added.add_members()->set_spec(std::string(bytes, 'x'));
  return {peer, assign};
}
Reply control(const std::string& peer) {
  protocol::Control control;
  control.set_verb("pause");
  return {peer, control};
}

std::vector<std::string> tasks_of(const Reply& reply) {
  const auto& ack = std::get<protocol::ResultAck>(reply.body);
  std::vector<std::string> tasks{ack.task()};
  for (const auto& other : ack.more()) {
    EXPECT_EQ(other.more_size(), 0);
    tasks.push_back(other.task());
  }
  return tasks;
}
std::vector<std::uint64_t> runs_of(const Reply& reply) {
  std::vector<std::uint64_t> runs;
  for (const auto& run : std::get<protocol::Assign>(reply.body).runs())
    runs.push_back(run.run_id());
  return runs;
}

TEST(ReplyBatch, AnswersToOnePeerTravelTogetherInOrder) {
  const auto sent = put_together({ack("a", "1"), ack("b", "2"), ack("a", "3"), ack("a", "4")});
  ASSERT_THAT(sent, SizeIs(2));
  EXPECT_EQ(sent[0].peer, "a");
  EXPECT_THAT(tasks_of(sent[0]), ElementsAre("1", "3", "4"));
  EXPECT_EQ(sent[1].peer, "b");
  EXPECT_THAT(tasks_of(sent[1]), ElementsAre("2"));
}

TEST(ReplyBatch, NothingOvertakesAMessageOfAnotherType) {
  const auto sent =
      put_together({assign("a", 1), assign("a", 2), control("a"), assign("a", 3), ack("a", "1")});
  ASSERT_THAT(sent, SizeIs(4));
  EXPECT_THAT(runs_of(sent[0]), ElementsAre(1, 2));
  EXPECT_TRUE(std::holds_alternative<protocol::Control>(sent[1].body));
  EXPECT_THAT(runs_of(sent[2]), ElementsAre(3));
  EXPECT_THAT(tasks_of(sent[3]), ElementsAre("1"));
}

TEST(ReplyBatch, AMessageStaysBelowAMebibyte) {
  constexpr std::size_t kMuch = 400'000;
  const auto sent =
      put_together({assign("a", 1, kMuch), assign("a", 2, kMuch), assign("a", 3, kMuch)});
  ASSERT_THAT(sent, SizeIs(2));
  EXPECT_THAT(runs_of(sent[0]), ElementsAre(1, 2));
  EXPECT_THAT(runs_of(sent[1]), ElementsAre(3));
}

}  // namespace
}  // namespace saesweep::scheduler
