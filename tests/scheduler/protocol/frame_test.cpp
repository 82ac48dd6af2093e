#include "scheduler/protocol/frame.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/philox.h"
#include "scheduler/protocol/link.h"
#include "scheduler/protocol/messages.pb.h"

namespace saesweep::protocol {
namespace {

using testing::HasSubstr;

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

template <class Bytes>
std::string hex(const Bytes& bytes) {
  std::string text;
  for (const auto byte : bytes) text += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  return text;
}

Header header_of_everything() {
  return {.type = MessageType::kResult,
          .flags = kReliable | kRetransmission,
          .session = 0x0102030405060708,
          .seq = 9,
          .ack = 0x1122,
          .credit = 256};
}

TEST(Frame, HasTheBytesThatItsPageSays) {
  // CRC-32C("123456789") = e3069283 is the check value of the polynomial (RFC 3720, B.4).
  EXPECT_EQ(hex(encode_header(header_of_everything(), bytes_of("123456789"))),
            "53535731"          // "SSW1"
            "01000c03"          // 1.0, RESULT, reliable and sent again
            "0807060504030201"  // session
            "0900000000000000"  // seq
            "2211000000000000"  // ack
            "00010000"          // credit
            "839206e3");        // CRC-32C
}

TEST(Frame, IsReadBackAsItWasWritten) {
  const std::string body = "body";
  const auto bytes = encode_header(header_of_everything(), bytes_of(body));
  EXPECT_EQ(decode_header(bytes, bytes_of(body)).value(), header_of_everything());
}

TEST(Frame, EveryFlippedBitIsNoticedOrOnlyChangesAFieldThatMayBeAnything) {
  const std::string body = "some body";
  const auto good = encode_header(header_of_everything(), bytes_of(body));
  const Header expected = header_of_everything();
  for (std::size_t bit = 0; bit < 8 * kHeaderBytes; ++bit) {
    auto bytes = good;
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    const auto header = decode_header(bytes, bytes_of(body));
    if (header) {
      EXPECT_NE(*header, expected) << "bit " << bit;
    }
    const bool must_fail = bit / 8 < 5 || bit / 8 >= 36;  // magic, major version, checksum
    EXPECT_FALSE(header && must_fail) << "bit " << bit;
  }
  for (std::size_t bit = 0; bit < 8 * body.size(); ++bit) {
    std::string other = body;
    other[bit / 8] = static_cast<char>(other[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_FALSE(decode_header(good, bytes_of(other))) << "bit " << bit;
  }
}

TEST(Frame, OfAnotherMajorVersionIsRefusedAsSuch) {
  Header header = header_of_everything();
  header.major = 2;
  const auto decoded = decode_header(encode_header(header, {}), {});
  ASSERT_FALSE(decoded);
  EXPECT_EQ(decoded.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(decoded.error().message, HasSubstr("2.0"));
}

TEST(Frame, OfAnotherMinorVersionIsRead) {
  Header header = header_of_everything();
  header.minor = 7;
  EXPECT_EQ(decode_header(encode_header(header, {}), {}).value().minor, 7);
}

TEST(Frame, WithAnImpossibleSequenceIsRefused) {
  Header reliable = header_of_everything();
  reliable.seq = 0;
  EXPECT_FALSE(decode_header(encode_header(reliable, {}), {}));
  Header unreliable = header_of_everything();
  unreliable.flags = 0;
  EXPECT_FALSE(decode_header(encode_header(unreliable, {}), {}));
}

TEST(Frame, OfAnUnknownTypeIsRefused) {
  Header header = header_of_everything();
  header.type = static_cast<MessageType>(200);
  EXPECT_FALSE(decode_header(encode_header(header, {}), {}));
}

// ---- golden bodies: numbers of fields and of types are a promise
// ----------------------------------

template <class Body>
Body filled();
template <>
Hello filled() {
  Hello hello;
  hello.set_worker_name("w");
  hello.set_host("h");
  hello.set_build("b");
  hello.set_slots(2);
  hello.set_memory_bytes(300);
  hello.set_known_epoch(4);
  hello.set_last_seq_received(5);
  return hello;
}
template <>
Welcome filled() {
  Welcome welcome;
  welcome.set_worker_id(1);
  welcome.set_epoch(2);
  welcome.set_minor(3);
  welcome.set_heartbeat_ms(1000);
  welcome.set_lease_ms(60000);
  welcome.set_resume(true);
  welcome.set_last_seq_received(7);
  return welcome;
}
template <>
Reject filled() {
  Reject reject;
  reject.set_code("c");
  reject.set_text("t");
  return reject;
}
template <>
Heartbeat filled() {
  Heartbeat beat;
  beat.set_sent_ns(1);
  beat.set_running(2);
  beat.set_running_hash(3);
  beat.set_free_slots(4);
  auto& counters = *beat.mutable_counters();
  counters.set_cache_hits(1);
  counters.set_cache_misses(2);
  counters.set_cache_bytes(3);
  counters.set_cache_evicted_bytes(4);
  counters.set_cache_corrupt_chunks(5);
  counters.set_executor_restarts(6);
  counters.set_tokens_trained(7);
  counters.set_tokens_harvested(8);
  counters.set_cache_refused_writes(9);
  return beat;
}
template <>
Resync filled() {
  Resync resync;
  resync.set_epoch(2);
  const auto fill = [](Resync::Lease& lease, std::uint64_t run) {
    lease.set_run_id(run);
    lease.set_task("t");
    lease.set_fence(3);
  };
  fill(*resync.add_running(), 1);
  fill(*resync.add_finished(), 2);
  return resync;
}
template <>
HeartbeatAck filled() {
  HeartbeatAck ack;
  ack.set_sent_ns(1);
  ack.set_epoch(2);
  ack.set_want_full_list(true);
  return ack;
}
CheckpointRef some_checkpoint() {
  CheckpointRef checkpoint;
  checkpoint.set_path("p");
  checkpoint.set_step(2);
  checkpoint.set_tokens(3);
  return checkpoint;
}
Artifact some_artifact() {
  Artifact artifact;
  artifact.set_name("n");
  artifact.set_sha256("s");
  artifact.set_bytes(3);
  return artifact;
}
template <>
Assign filled() {
  Assign assign;
  Run& run = *assign.add_runs();
  run.set_run_id(1);
  Member& member = *run.add_members();
  member.set_task("t");
  member.set_fence(2);
  member.set_attempt(3);
  member.set_kind(TASK_KIND_EVALUATE);
  member.set_spec("{}");
  *member.mutable_resume() = some_checkpoint();
  member.set_trial_directory("d");
  *member.add_inputs() = some_artifact();
  run.set_threads(3);
  run.set_checkpoint_every_s(0.5);
  run.set_lease_ms(5);
  run.set_memory_bytes(6);
  run.set_cache_bytes(7);
  return assign;
}
template <>
AssignReply filled() {
  AssignReply reply;
  reply.set_run_id(1);
  reply.set_accepted(true);
  reply.set_reason("r");
  return reply;
}
template <>
Started filled() {
  Started started;
  started.set_run_id(1);
  started.set_pid(2);
  started.set_slot(3);
  return started;
}
template <>
Progress filled() {
  Progress progress;
  progress.set_run_id(1);
  progress.set_stage("s");
  progress.set_done(3);
  progress.set_total(4);
  progress.set_unit("u");
  progress.set_rate(0.5);
  MemberProgress& member = *progress.add_members();
  member.set_task("t");
  member.set_fence(2);
  member.set_step(3);
  member.set_steps(4);
  member.set_tokens(5);
  (*member.mutable_metrics())["m"] = 0.5;
  return progress;
}
template <>
Checkpointed filled() {
  Checkpointed checkpointed;
  checkpointed.set_run_id(1);
  checkpointed.set_task("t");
  checkpointed.set_fence(3);
  *checkpointed.mutable_checkpoint() = some_checkpoint();
  checkpointed.set_reason("r");
  return checkpointed;
}
template <>
TaskResult filled() {
  TaskResult result;
  result.set_run_id(1);
  result.set_task("t");
  result.set_fence(3);
  result.set_outcome(OUTCOME_RETRY);
  result.set_reason("r");
  result.set_summary("{}");
  *result.add_artifacts() = some_artifact();
  result.set_executor_died_alone(true);
  result.set_out_of_memory(true);
  return result;
}
template <>
ResultAck filled() {
  ResultAck ack;
  ack.set_task("t");
  ack.set_fence(2);
  ack.set_verdict("v");
  return ack;
}
template <>
Control filled() {
  Control control;
  control.set_run_id(1);
  control.set_task("t");
  control.set_fence(3);
  control.set_verb("v");
  return control;
}
template <>
ControlDone filled() {
  ControlDone done;
  done.set_run_id(1);
  done.set_task("t");
  done.set_fence(3);
  done.set_verb("v");
  done.set_outcome("o");
  return done;
}
template <>
Bye filled() {
  Bye bye;
  bye.set_reason("r");
  return bye;
}

template <>
Query filled() {
  Query query;
  query.set_id(1);
  query.set_verb("v");
  query.set_body("{}");
  query.set_key("k");
  query.set_piece("p");
  query.set_offset(6);
  query.set_payload_bytes(7);
  return query;
}
template <>
QueryReply filled() {
  QueryReply reply;
  reply.set_id(1);
  reply.set_code("ok");
  reply.set_piece("{}");
  reply.set_offset(4);
  reply.set_body_bytes(5);
  return reply;
}

template <class Body>
void expect_golden(MessageType type, int number, const std::string& golden) {
  EXPECT_EQ(static_cast<int>(type), number);
  EXPECT_TRUE(is_known(type));
  const std::string body = filled<Body>().SerializeAsString();
  EXPECT_EQ(hex(body), golden) << to_string(type);
  Body read;
  ASSERT_TRUE(parse_body(body, read)) << to_string(type);
  EXPECT_EQ(read.SerializeAsString(), body);
}

TEST(Messages, HaveTheBytesOfVersionOne) {
  expect_golden<Hello>(MessageType::kHello, 1, "0a01771201681a0162200228ac0230043805");
  expect_golden<Welcome>(MessageType::kWelcome, 2, "08011002180320e80728e0d40330013807");
  expect_golden<Reject>(MessageType::kReject, 3, "0a0163120174");
  expect_golden<Heartbeat>(MessageType::kHeartbeat, 4,
                           "08011002180320042a12080110021803200428053006380740084809");
  expect_golden<HeartbeatAck>(MessageType::kHeartbeatAck, 5, "080110021801");
  expect_golden<Assign>(MessageType::kAssign, 6,
                        "0a38080112230a01741002180320022a027b7d32070a0170100218033a016442080a016e12"
                        "01731803180321000000000000e03f280530063807");
  expect_golden<AssignReply>(MessageType::kAssignReply, 7, "080110011a0172");
  expect_golden<Started>(MessageType::kStarted, 8, "080110021803");
  expect_golden<Progress>(MessageType::kProgress, 9,
                          "0801120173180320042a017531000000000000e03f3a190a01741002180320042805320c"
                          "0a016d11000000000000e03f");
  expect_golden<Checkpointed>(MessageType::kCheckpointed, 11,
                              "0801120174180322070a0170100218032a0172");
  expect_golden<TaskResult>(MessageType::kResult, 12,
                            "0801120174180320052a017232027b7d3a080a016e120173180340014801");
  expect_golden<ResultAck>(MessageType::kResultAck, 13, "0a017410021a0176");
  expect_golden<Control>(MessageType::kControl, 14, "08011201741803220176");
  expect_golden<ControlDone>(MessageType::kControlDone, 15, "080112017418032201762a016f");
  expect_golden<Bye>(MessageType::kBye, 18, "0a0172");
  expect_golden<Resync>(MessageType::kResync, 19,
                        "0802120708011201741803"
                        "1a0708021201741803");
  expect_golden<Query>(MessageType::kQuery, 22, "08011201761a027b7d22016b2a017030063807");
  expect_golden<QueryReply>(MessageType::kQueryReply, 23, "080112026f6b1a027b7d20042805");
}

TEST(Messages, AreNotReadFromAnythingElse) {
  TaskResult result;
  EXPECT_FALSE(parse_body("\xff\xff\xff", result));
  const std::string whole = filled<TaskResult>().SerializeAsString();
  EXPECT_FALSE(parse_body(whole.substr(0, whole.size() - 1), result));
}

}  // namespace
}  // namespace saesweep::protocol
