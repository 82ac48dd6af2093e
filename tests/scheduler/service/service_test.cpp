// The service as a running thing: a real journal, real sockets, an agent that does what a test
// says.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>
#include <string>
#include <thread>

#include "core/files.h"
#include "metrics/telemetry/telemetry.h"
#include "scheduler/service/scheduler_service.h"
#include "scheduler/service/state_store.h"
#include "scheduler/service/submission.h"
#include "scheduler/service/telemetry_feed.h"
#include "sweeps/estimates.h"
#include "tests/scheduler/decisions/decisions_words.h"
#include "tests/scheduler/service/service_words.h"
#include "tests/support/json_schema_check.h"
#include "tests/support/temp_dir.h"

namespace saesweep::scheduler {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

struct Service : testing::Test {
  test::TempDir dir;
  fs::path state = dir.path() / "state";
  std::string endpoint = "ipc://" + (dir.path() / "workers").string();
  std::vector<Json> events;
  metrics::Telemetry telemetry{{.component = "run", .version = "1", .commit = "c"}};

  Result<SchedulerService> open(Observer observer = {}) {
    return SchedulerService::open(
        {.state_directory = state,
         .endpoint = endpoint,
         .build = "test",
         .slots = 1,
         .observer = observer ? observer : [this](const Json& event) { events.push_back(event); },
         .telemetry = &telemetry});
  }
  // One whole life of the service with one agent.
  Result<bool> run(const sweeps::SweepPlan& plan, FakeAgent::Behaviour behaviour = {},
                   std::stop_source stop = {}) {
    SAE_TRY(SchedulerService service, open());
    SAE_TRY_VOID(service.submit(plan));
    FakeAgent agent(endpoint, state, std::move(behaviour));
    auto served = service.run(stop.get_token());
    agent.join();
    trained += agent.trained();
    scored += agent.scored();
    pauses += agent.pauses();
    return served;
  }
  std::uint64_t trained = 0, scored = 0, pauses = 0;

  std::vector<std::string> differences() {
    return verify_journal(state / "journal").value_or(std::vector<std::string>{"unreadable"});
  }
  std::vector<std::string> states(const SweepResult& result) {
    std::vector<std::string> all;
    for (const SubjectResult& subject : result.subjects) all.push_back(subject.state);
    return all;
  }
};

TEST_F(Service, FinishesASweepAndTellsAboutIt) {
  ASSERT_EQ(run(plan_of({4, 8})).value(), true);
  EXPECT_EQ(trained, 2u);
  EXPECT_EQ(scored, 6u);
  const SweepResult result = read_sweep(state, "widths").value();
  EXPECT_TRUE(result.finished);
  EXPECT_TRUE(result.ended.has_value());
  EXPECT_EQ(result.effective_yaml, "name: widths\n");
  EXPECT_THAT(states(result), ElementsAre("done", "done", "done"));
  const SubjectResult& first = result.subjects[0];
  EXPECT_EQ(first.number, 0u);
  EXPECT_EQ(first.identity, plan_of({4}).trials[0].identity.hex());
  EXPECT_EQ(first.spec, plan_of({4}).trials[0].spec.to_json());
  EXPECT_EQ(first.tokens, 1000u);
  EXPECT_THAT(first.evaluations, SizeIs(2));
  EXPECT_EQ(read_file(first.files.at("sae.safetensors")).value(), "train:" + first.identity);
  EXPECT_TRUE(result.subjects[2].baseline);
  EXPECT_EQ(result.subjects[2].spec["name"], "pca");
  std::vector<std::string> finished;
  for (const Json& event : events)
    if (event["event"] == "trial.finished") finished.push_back(event["trial"]);
  EXPECT_THAT(finished,
              ElementsAre(first.identity.substr(0, 12), result.subjects[1].identity.substr(0, 12)));
  EXPECT_FALSE(fs::exists(state / "trials" / first.identity.substr(0, 12)))
      << "checkpoints of what is finished";
  EXPECT_THAT(telemetry.expose(),
              HasSubstr("saesweep_task_attempts_total{kind=\"train\",outcome=\"done\"} 2"));
  EXPECT_THAT(differences(), IsEmpty());
  EXPECT_THAT(list_sweeps(state).value(), ElementsAre("widths"));
}

TEST_F(Service, OfCheckpointsTheTwoNewestAreKept) {
  std::set<std::string> left;
  const auto behaviour = [&](FakeAgent& agent, const auto& run, const auto& member) {
    if (member.kind() == protocol::TASK_KIND_TRAIN) {
      for (const std::uint64_t step : {10, 20, 30}) agent.checkpoint(run, member, step);
      const fs::path lease = state / member.trial_directory() / fmt::format("f{}", member.fence());
      for (int i = 0; i < 10'000 && fs::exists(lease / "step-10"); ++i)
        std::this_thread::sleep_for(1ms);
      for (const auto& entry : fs::directory_iterator(lease)) left.insert(entry.path().filename());
    }
    agent.succeed(run, member);
  };
  ASSERT_TRUE(run(plan_of({4}), behaviour).value());
  EXPECT_THAT(left, ElementsAre("step-20", "step-30"));
}

TEST_F(Service, ACheckpointThatDidNotArriveIsNotGoneOnFrom) {
  const auto behaviour = [&](FakeAgent& agent, const auto& run, const auto& member) {
    if (member.kind() == protocol::TASK_KIND_TRAIN && member.fence() == 1) {
      agent.checkpoint(run, member, 10);
      protocol::Checkpointed lie;
      lie.set_run_id(run.run_id());
      lie.set_task(member.task());
      lie.set_fence(member.fence());
      lie.mutable_checkpoint()->set_path(member.trial_directory() + "/f1/step-20");
      lie.mutable_checkpoint()->set_step(20);
      lie.set_travelled(true);
      agent.say(protocol::MessageType::kCheckpointed, lie);
      return agent.say(protocol::MessageType::kResult,
                       FakeAgent::result(run, member, protocol::OUTCOME_RETRY, "again"));
    }
    if (member.kind() == protocol::TASK_KIND_TRAIN) {
      EXPECT_EQ(member.resume().step(), 10u);
    }
    agent.succeed(run, member);
  };
  ASSERT_TRUE(run(plan_of({4}), behaviour).value());
  EXPECT_EQ(trained, 1u);
}

TEST_F(Service, DetailsOfARowAreThoseOfCore) {
  ASSERT_TRUE(run(plan_of({4})).value());
  const SweepResult result = read_sweep(state, "").value();
  const std::string kept = read_file(result.subjects[0].files.at("scores-details.json")).value();
  EXPECT_EQ(kept.substr(0, 5), "eval:");
  const auto store = StateStore::open(state / "journal", StateStore::Mode::kReadOnly).value();
  const std::string spec = store.state().find_task(kept)->spec().spec();
  EXPECT_THAT(spec, HasSubstr(R"("kind":"core")"));
}

TEST_F(Service, DoesAFinishedSweepNotAgain) {
  ASSERT_TRUE(run(plan_of({4})).value());
  auto service = open().value();
  ASSERT_TRUE(service.submit(plan_of({4})));
  EXPECT_TRUE(service.result("widths").value().finished);
  EXPECT_EQ(service.run({}).value(), true) << "without any agent";
  EXPECT_EQ(trained, 1u);
}

TEST_F(Service, OfAChangedPlanDoesOnlyWhatIsNew) {
  ASSERT_TRUE(run(plan_of({4, 8})).value());
  ASSERT_TRUE(run(plan_of({8, 16})).value());
  EXPECT_EQ(trained, 3u);
  EXPECT_EQ(scored, 6u + 2u);
  EXPECT_THAT(read_sweep(state, "widths").value().subjects, SizeIs(3));
  EXPECT_THAT(differences(), IsEmpty());
}

TEST_F(Service, TrainsAgainWhatLostItsFiles) {
  ASSERT_TRUE(run(plan_of({4})).value());
  const SweepResult before = read_sweep(state, "widths").value();
  fs::remove(before.subjects[0].files.at("sae.safetensors"));
  ASSERT_TRUE(run(plan_of({4})).value());
  EXPECT_EQ(trained, 2u);
  EXPECT_EQ(scored, 4u) << "scores stay";
  EXPECT_TRUE(fs::exists(before.subjects[0].files.at("sae.safetensors")));
}

TEST_F(Service, ARowThatFailsIsListedWithItsReason) {
  const auto plan = plan_of({4, 8});
  const std::string bad = "train:" + plan.trials[1].identity.hex();
  const auto served = run(plan, [&](FakeAgent& agent, const auto& run, const auto& member) {
    if (member.task() != bad) return agent.succeed(run, member);
    agent.say(protocol::MessageType::kResult,
              FakeAgent::result(run, member, protocol::OUTCOME_DIVERGED, "step 3: not finite"));
  });
  EXPECT_EQ(served.value(), true);
  const SweepResult result = read_sweep(state, "widths").value();
  EXPECT_THAT(states(result), ElementsAre("done", "diverged", "done"));
  EXPECT_EQ(result.subjects[1].reason, "step 3: not finite");
  std::size_t failed = 0;
  for (const Json& event : events)
    if (event["event"] == "trial.failed") {
      ++failed;
      EXPECT_EQ(event["reason"], "step 3: not finite");
      EXPECT_EQ(event["state"], "diverged");
    }
  EXPECT_EQ(failed, 1u);
}

TEST_F(Service, StoppedItPausesWhatRunsAndGoesOnLater) {
  std::stop_source stop;
  const auto stopped = run(
      plan_of({4, 8}),
      [&](FakeAgent& agent, const auto& run, const auto& member) {
        if (member.task() != run.members(0).task()) return;
        agent.hold(run);
        stop.request_stop();
      },
      stop);
  ASSERT_EQ(stopped.value(), false);
  EXPECT_EQ(pauses, 2u);
  EXPECT_FALSE(read_sweep(state, "widths").value().finished);
  EXPECT_FALSE(fs::exists(state / "endpoint.json"));

  std::vector<std::uint64_t> resumed;
  const auto served =
      run(plan_of({4, 8}), [&](FakeAgent& agent, const auto& run, const auto& member) {
        if (member.kind() == protocol::TASK_KIND_TRAIN) {
          resumed.push_back(member.resume().step());
          EXPECT_TRUE(fs::is_directory(state / member.resume().path()));
          EXPECT_EQ(member.fence(), 2u);
        }
        agent.succeed(run, member);
      });
  EXPECT_EQ(served.value(), true);
  EXPECT_THAT(resumed, ElementsAre(70, 70));
  EXPECT_THAT(differences(), IsEmpty());
}

TEST_F(Service, AFullDiskOfAnExecutorEndsTheRunResumably) {
  const auto served = run(plan_of({4}), [](FakeAgent& agent, const auto& run, const auto& member) {
    agent.say(protocol::MessageType::kResult,
              FakeAgent::result(run, member, protocol::OUTCOME_RETRY, "disk full: no space"));
  });
  ASSERT_FALSE(served);
  EXPECT_EQ(served.error().code, ErrorCode::kResourceExhausted);
  EXPECT_THAT(served.error().message, HasSubstr("no space"));
  EXPECT_EQ(run(plan_of({4})).value(), true);
}

TEST_F(Service, AFullDiskOfTheJournalEndsTheRunAndLosesNothingThatWasSaid) {
  fs::create_directories(state);
  if (::mount("tmpfs", state.c_str(), "tmpfs", 0, "size=8m") != 0)
    GTEST_SKIP() << "may not mount a small disk";
  std::vector<std::uint64_t> ks;
  for (std::uint64_t k = 1; k <= 30; ++k) ks.push_back(k);
  int files = 0;
  const auto filler = [&] { return state / fmt::format("filler-{}", files); };
  const auto served = run(plan_of(ks), [&](FakeAgent& agent, const auto& run, const auto& member) {
    if (files == 0)
      while (write_file_atomically(filler(), std::string(std::size_t{16} << 10, 'x'))) ++files;
    auto diverged = FakeAgent::result(run, member, protocol::OUTCOME_DIVERGED, "step 1");
    diverged.set_summary("{\"x\":\"" + std::string(std::size_t{64} << 10, 'x') + "\"}");
    agent.say(protocol::MessageType::kResult, diverged);
  });
  EXPECT_FALSE(served);
  if (!served) {
    EXPECT_EQ(served.error().code, ErrorCode::kResourceExhausted) << served.error().message;
  }
  EXPECT_GT(files, 0);
  while (files > 0) {
    --files;
    fs::remove(filler());
  }
  EXPECT_EQ(run(plan_of(ks)).value(), true);
  const SweepResult after = read_sweep(state, "").value();
  for (const SubjectResult& subject : after.subjects) EXPECT_NE(subject.state, "unfinished");
  EXPECT_THAT(differences(), IsEmpty());
  ::umount2(state.c_str(), MNT_DETACH);
}

TEST_F(Service, AResultWhoseFilesAreNotThereIsTriedAgain) {
  bool lied = false;
  const auto served = run(plan_of({4}), [&](FakeAgent& agent, const auto& run, const auto& member) {
    if (lied) return agent.succeed(run, member);
    lied = true;
    auto lie = FakeAgent::result(run, member, protocol::OUTCOME_DONE);
    lie.add_artifacts()->set_name("sae.safetensors");
    lie.mutable_artifacts(0)->set_sha256(std::string(64, '0'));
    agent.say(protocol::MessageType::kResult, lie);
  });
  EXPECT_EQ(served.value(), true);
  EXPECT_EQ(read_sweep(state, "widths").value().subjects[0].state, "done");
}

TEST_F(Service, ResultsSaidTwiceCountOnce) {
  const auto twice = [](FakeAgent& agent, const auto& run, const auto& member) {
    agent.succeed(run, member);
    agent.succeed(run, member);
  };
  EXPECT_EQ(run(plan_of({4, 8}), twice).value(), true);
  EXPECT_THAT(states(read_sweep(state, "widths").value()), ElementsAre("done", "done", "done"));
  EXPECT_THAT(telemetry.expose(),
              HasSubstr("saesweep_task_attempts_total{kind=\"train\",outcome=\"done\"} 2"));
}

TEST_F(Service, IsOneForAStateDirectoryAndSaysWhoHoldsIt) {
  const auto first = open().value();
  endpoint += "2";
  const auto second = open();
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(second.error().message, HasSubstr(state.string()));
  const Json said = parse_json(read_file(state / "endpoint.json").value()).value();
  EXPECT_EQ(said["pid"], ::getpid());
  EXPECT_EQ(said["epoch"], 1);
}

TEST_F(Service, IsReadWhileItServes) {
  std::optional<SweepResult> seen;
  const auto served = run(plan_of({4}), [&](FakeAgent& agent, const auto& run, const auto& member) {
    if (member.kind() == protocol::TASK_KIND_TRAIN) seen = read_sweep(state, "").value();
    agent.succeed(run, member);
  });
  EXPECT_EQ(served.value(), true);
  ASSERT_TRUE(seen);
  EXPECT_FALSE(seen->finished);
  EXPECT_THAT(states(*seen), ElementsAre("unfinished", "unfinished"));
}

TEST_F(Service, NamesTheSweepsThatThereAre) {
  ASSERT_TRUE(run(plan_of({4}, "one")).value());
  ASSERT_TRUE(run(plan_of({4}, "two")).value());
  EXPECT_EQ(trained, 1u) << "the same trial";
  EXPECT_THAT(list_sweeps(state).value(), ElementsAre("two", "one"));
  EXPECT_EQ(read_sweep(state, "").value().name, "two");
  const auto missing = read_sweep(state, "three");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(missing.error().message, HasSubstr("two, one"));
  EXPECT_EQ(read_sweep(dir.path() / "elsewhere", "").error().code, ErrorCode::kNotFound);
}

TEST_F(Service, TrainsAModel) {
  sweeps::SweepPlan plan;
  plan.name = "lm";
  plan.train_lm = sweeps::TrainLmSpec{};
  plan.train_lm->games = 100;
  plan.train_lm->batch = 10;
  plan.train_lm->data.games = 1000;
  ASSERT_EQ(run(plan).value(), true);
  const SweepResult result = read_sweep(state, "lm").value();
  EXPECT_TRUE(result.finished);
  EXPECT_EQ(result.model_summary["cross_entropy"], 1.5);
  EXPECT_EQ(read_file(result.model_files.at("model.safetensors")).value(), "weights");
}

TEST_F(Service, EndsWithoutAgentsWhenStopped) {
  auto service = open().value();
  ASSERT_TRUE(service.submit(plan_of({4})));
  std::stop_source stop;
  stop.request_stop();
  EXPECT_EQ(service.run(stop.get_token()).value(), false);
}

TEST_F(Service, TellsProgressOfTheWholeSweep) {
  const auto served =
      run(plan_of({4, 8}), [](FakeAgent& agent, const auto& run, const auto& member) {
        if (member.kind() == protocol::TASK_KIND_TRAIN) {
          protocol::Progress progress;
          progress.set_run_id(run.run_id());
          progress.set_stage("train");
          progress.set_unit("tokens");
          progress.set_rate(5);
          progress.set_waiting(0.25);
          auto& each = *progress.add_members();
          each.set_task(member.task());
          each.set_fence(member.fence());
          each.set_tokens(250);
          agent.say(protocol::MessageType::kProgress, progress);
        }
        agent.succeed(run, member);
      });
  EXPECT_EQ(served.value(), true);
  const auto said = std::ranges::find_if(
      events, [](const Json& event) { return event["event"] == "stage.progress"; });
  ASSERT_NE(said, events.end());
  EXPECT_EQ((*said)["stage"], "train");
  EXPECT_EQ((*said)["done"], 250);
  EXPECT_EQ((*said)["total"], 2000);
  EXPECT_EQ((*said)["unit"], "tokens");
  EXPECT_EQ((*said)["rate"], 5);
  EXPECT_EQ((*said)["waiting"], 0.25);
}

// Each look once.
TEST(ProgressFeed, TellsLooksAtHeldOutRowsAsTheyCome) {
  World world;
  const std::string trial(12, 'a'), other(12, 'b');
  world.hear("", sweep_of({trial, other}));
  world.join("w");
  const auto run = world.run();
  protocol::Progress progress;
  progress.set_run_id(run.run_id());
  progress.set_stage("train");
  for (const auto& member : run.members()) progress.add_members()->set_task(member.task());
  auto& metrics = *progress.mutable_members(0)->mutable_metrics();
  metrics["loss"] = 7;
  ProgressFeed feed;
  const auto hear = [&] {
    world.now += 1min;
    Json event = feed.hear(world.state, progress, world.now).value();
    event["time"] = 0;
    EXPECT_THAT(test::JsonSchemaCheck::problems(event, test::JsonSchemaCheck::schema("events")),
                IsEmpty());
    return event.value("heldout", Json::array());
  };
  EXPECT_THAT(hear(), IsEmpty());
  metrics["heldout_tokens"] = 128;
  metrics["heldout_loss"] = 3;
  metrics["heldout_fve"] = std::nan("");
  metrics["heldout_l0"] = 4.5;
  EXPECT_EQ(hear(), Json::array({{{"trial", trial}, {"tokens", 128}, {"loss", 3.0}, {"l0", 4.5}}}));
  EXPECT_THAT(hear(), IsEmpty());
  metrics["heldout_tokens"] = 256;
  (*progress.mutable_members(1)->mutable_metrics())["heldout_tokens"] = 64;
  const Json both = hear();
  ASSERT_EQ(both.size(), 2u);
  EXPECT_EQ(both[0]["tokens"], 256);
  EXPECT_EQ(both[1], (Json{{"trial", other}, {"tokens", 64}}));
}

TEST(SubmissionTest, SaysWhatTrialsOfARunShare) {
  sweeps::SweepPlan plan = plan_of({4, 8});
  sweeps::PlannedStream& stream = plan.streams[0];
  stream.rows_per_document = 20;
  sweeps::ModelShape& model = stream.shape.emplace();
  model.layers = 2;
  model.d_model = 8;
  model.context = 20;
  model.vocabulary = 33;
  sweeps::TrainingSpec& spliced = plan.trials[0].spec.training;
  spliced.architecture = sweeps::Architecture::kEndToEnd;
  plan.trials[1].spec.training.device = "cuda";
  const Submission submission = to_submission(plan);
  const auto task_of = [&](const sweeps::PlannedTrial& trial) {
    return *std::ranges::find(submission.tasks, "train:" + trial.identity.hex(),
                              &journal::TaskSpec::id);
  };
  const auto reads_documents = task_of(plan.trials[0]), on_gpu = task_of(plan.trials[1]);
  const std::uint64_t of_model = sweeps::estimated_splice_memory(spliced, stream);
  EXPECT_GT(of_model, 0u);
  EXPECT_EQ(reads_documents.shared_memory_bytes(), of_model);
  EXPECT_EQ(reads_documents.memory_bytes(),
            sweeps::estimated_training_memory(spliced, 8) + of_model);
  EXPECT_EQ(reads_documents.shared_gpu_memory_bytes(), 0u);
  EXPECT_EQ(on_gpu.shared_memory_bytes(), 0u);
  EXPECT_EQ(on_gpu.shared_gpu_memory_bytes(),
            sweeps::shared_gpu_memory(plan.trials[1].spec.training, 8));
  EXPECT_LT(on_gpu.shared_gpu_memory_bytes(), on_gpu.gpu_memory_bytes());
}

}  // namespace
}  // namespace saesweep::scheduler
