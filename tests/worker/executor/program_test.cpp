// saesweep-task as a process: signals, ends, verbs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <cmath>
#include <cstdio>
#include <string>

#include "core/json.h"
#include "tests/worker/executor/scene.h"

namespace saesweep::test {
namespace {

using sweeps::Architecture;
using testing::HasSubstr;

using ExecutorProgram = Scene;

TEST_F(ExecutorProgram, EndsWithItsAgent) {
  FakeAgent agent(state());
  agent.send_run(run_of({train_member(trial(Architecture::kTopK, 100'000))}));
  agent.wait_for(checkpoint_number(2));
  agent.hang_up();
  EXPECT_EQ(agent.wait_exit(), 0);
}

TEST_F(ExecutorProgram, PausesWhatRunsBeforeItSaysBye) {
  const auto spec = trial(Architecture::kTopK, 100'000);
  FakeAgent agent(state());
  agent.send_run(run_of({train_member(spec)}, kNever));
  agent.wait_for([](const auto& envelope) { return envelope.has_progress(); });
  protocol::Envelope bye;
  bye.mutable_bye()->set_reason("test");
  agent.send(bye);
  const auto left = agent.wait_for_end(1);
  EXPECT_EQ(left.control.at(task_of(spec)), "paused");
  EXPECT_GT(left.checkpoints.at(task_of(spec)).step(), 0u);
  EXPECT_EQ(agent.wait_exit(), 0);
}

TEST_F(ExecutorProgram, LeavesSignalsOfTheTerminalToItsAgent) {
  const auto spec = trial(Architecture::kTopK, 50);
  FakeAgent agent(state());
  agent.wait_for([](const auto& envelope) { return envelope.has_executor_hello(); });
  agent.send_run(run_of({train_member(spec)}));
  agent.wait_for(checkpoint_number(1));
  for (const int number : {SIGINT, SIGTERM}) ASSERT_EQ(::kill(agent.pid(), number), 0);
  EXPECT_EQ(agent.wait_for_end(1).results.at(task_of(spec)).outcome(), protocol::OUTCOME_DONE);
}

TEST_F(ExecutorProgram, TellsProgressOfEachMember) {
  auto spec = trial(Architecture::kTopK, 100'000);
  spec.training.eval_every = 64;
  FakeAgent agent(state());
  agent.send_run(run_of({train_member(spec, 5)}, kNever));
  const auto told = agent.wait_for([](const auto& envelope) {
    return envelope.has_progress() && envelope.progress().stage() == "train" &&
           envelope.progress().members_size() > 0 &&
           envelope.progress().members(0).metrics().contains("heldout_tokens");
  });
  ASSERT_TRUE(told);
  const auto& progress = told->progress();
  EXPECT_EQ(progress.unit(), "tokens");
  EXPECT_EQ(progress.total(), 100'000u * 64);
  ASSERT_EQ(progress.members_size(), 1);
  const auto& member = progress.members(0);
  EXPECT_EQ(member.task(), task_of(spec));
  EXPECT_EQ(member.fence(), 5u);
  EXPECT_EQ(member.steps(), 100'000u);
  EXPECT_EQ(member.tokens(), member.step() * 64);
  for (const char* metric : {"loss", "fve", "l0", "dead_fraction", "grad_norm", "heldout_loss",
                             "heldout_mse", "heldout_fve", "heldout_l0", "heldout_dead_fraction"})
    EXPECT_TRUE(member.metrics().contains(metric)) << metric;
  // Every 500 steps there is a point of the curve.
  EXPECT_EQ(std::fmod(member.metrics().at("heldout_tokens"), 500 * 64), 0);
}

TEST_F(ExecutorProgram, TakesOneRunAtATime) {
  const auto spec = trial(Architecture::kTopK, 100'000);
  FakeAgent agent(state());
  agent.send_run(run_of({train_member(spec)}, kNever));
  agent.send_run(run_of({train_member(spec)}, kNever, 2));  // waits, if there is room yet
  agent.send_run(run_of({train_member(spec)}, kNever, 3));
  agent.send_run(run_of({train_member(spec)}, kNever, 4));  // at the latest this is one too many
  const auto refused = agent.wait_for([](const auto& envelope) { return envelope.has_result(); });
  ASSERT_TRUE(refused);
  EXPECT_GE(refused->result().run_id(), 2u);
  EXPECT_EQ(refused->result().outcome(), protocol::OUTCOME_RETRY);
}

struct Output {
  int code = -1;
  std::string text;
};
Output run_program(const std::string& arguments) {
  const std::string command = SAESWEEP_BINARY_DIR "/bin/saesweep-task " + arguments + " 2>&1";
  std::FILE* pipe = ::popen(command.c_str(), "r");
  Output output;
  char buffer[4096];
  for (std::size_t got = 0; (got = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;)
    output.text.append(buffer, got);
  const int status = ::pclose(pipe);
  output.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return output;
}

TEST(ExecutorVerbs, AChannelThatIsNoSocketIsMisuse) {
  const Output output = run_program("--channel 0 < /dev/null");
  EXPECT_EQ(output.code, 2);
  EXPECT_THAT(output.text, HasSubstr("saesweep run"));
}

TEST(ExecutorVerbs, WordsItDoesNotKnowAreMisuse) {
  EXPECT_EQ(run_program("").code, 2);
  EXPECT_EQ(run_program("bench train --arch perceptron").code, 2);
  EXPECT_EQ(run_program("bench generate --bord 6").code, 2);
}

TEST(ExecutorVerbs, ProbeSaysWhatLibTorchFinds) {
  const Output output = run_program("probe --json");
  ASSERT_EQ(output.code, 0) << output.text;
  const Json found = parse_json(output.text).value();
  EXPECT_TRUE(found["libtorch"].is_string());
  EXPECT_GE(found["cores"], 1);
  const Json& cuda = found["cuda"];
  ASSERT_TRUE(cuda["devices"].is_array());
  // Either there is a GPU or it says what is missing.
  EXPECT_NE(cuda["devices"].empty(), cuda["missing"].empty()) << cuda.dump();
}

TEST(ExecutorVerbs, ABenchOfTrainingStartsAtTheL0ThatIsAskedFor) {
  for (const std::string arch : {"standard", "gated", "jumprelu"}) {
    const Output output = run_program("bench train --arch " + arch +
                                      " -n 1 --d-in 32 --d-sae 640 --batch 256 --steps 1 --rounds 1"
                                      " --l0 20 --json");
    ASSERT_EQ(output.code, 0) << output.text;
    const Json measured = parse_json(output.text).value();
    EXPECT_NEAR(measured["l0"].get<double>(), 20, 5) << arch;
    EXPECT_LT(measured["roofline"]["flops_per_sae_token"], 4 * 32 * 640) << arch;
  }
  EXPECT_EQ(run_program("bench train --arch topk --l0 20").code, 2);
}

TEST(ExecutorVerbs, EveryBenchHasItsBaselineInTheSameRun) {
  const std::pair<const char*, const char*> benches[] = {
      {"train -n 2 --d-in 32 --d-sae 64 --k 4 --batch 64 --steps 2 --rounds 1", "sae_tokens_per_s"},
      {"train --arch standard -n 2 --d-in 32 --d-sae 64 --batch 64 --steps 2 --rounds 1 "
       "--against autograd",
       "sae_tokens_per_s"},
      {"train --arch batchtopk -n 1 --d-in 32 --d-sae 64 --k 4 --batch 64 --steps 2 --rounds 1 "
       "--against autograd",
       "sae_tokens_per_s"},
      {"train --arch jumprelu -n 1 --d-in 32 --d-sae 64 --batch 64 --steps 2 --rounds 1 "
       "--against autograd",
       "sae_tokens_per_s"},
      {"harvest --board 4 --layers 2 --d-model 16 --heads 2 --d-mlp 32 --games 64 --rounds 1",
       "tokens_per_s"},
      {"generate --board 4 --games 1000 --rounds 1", "games_per_s"}};
  for (const auto& [arguments, key] : benches) {
    const Output output = run_program(std::string("bench ") + arguments + " --json");
    ASSERT_EQ(output.code, 0) << output.text;
    const Json measured = parse_json(output.text).value();
    EXPECT_GT(measured[key], 0) << arguments;
    EXPECT_GT(measured["baseline"][key], 0) << arguments;
    EXPECT_NEAR(measured["ratio"].get<double>(),
                measured[key].get<double>() / measured["baseline"][key].get<double>(), 1e-9);
    EXPECT_TRUE(measured["baseline"]["name"].is_string());
    EXPECT_TRUE(measured["versions"]["libtorch"].is_string());
  }
}

}  // namespace
}  // namespace saesweep::test
