// The service that stays, as those see it who ask: a real journal, real sockets, an agent that does
// what a test says.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <thread>

#include "core/files.h"
#include "scheduler/protocol/query.h"
#include "scheduler/service/result_json.h"
#include "scheduler/service/scheduler_service.h"
#include "scheduler/service/state_directory.h"
#include "scheduler/service/state_store.h"
#include "scheduler/service/submission.h"
#include "tests/scheduler/service/service_words.h"
#include "tests/support/temp_dir.h"

namespace saesweep::scheduler {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using protocol::QueryClient;
using testing::HasSubstr;
using testing::IsEmpty;

struct Asking : testing::Test {
  test::TempDir dir;
  fs::path state = dir.path() / "state";
  std::string endpoint = "ipc://" + (dir.path() / "workers").string();
  std::string clients = "ipc://" + (dir.path() / "clients").string();
  QueryClient client = QueryClient::connect(clients).value();

  // One life of a service that stays; ends with the value.
  struct Life {
    SchedulerService service;
    std::jthread thread;
    explicit Life(SchedulerService opened) : service(std::move(opened)) {
      thread = run_thread("scheduler", [this](std::stop_token stop) {
        const auto served = service.run(std::move(stop));
        EXPECT_TRUE(served) << served.error().message;
      });
    }
    void end() {
      thread.request_stop();
      thread.join();
    }
  };
  std::unique_ptr<Life> begin() {
    auto opened = SchedulerService::open({.state_directory = state,
                                          .endpoint = endpoint,
                                          .client_endpoint = clients,
                                          .stays = true,
                                          .build = "test",
                                          .observer = {},
                                          .telemetry = nullptr});
    EXPECT_TRUE(opened) << opened.error().message;
    return std::make_unique<Life>(std::move(*opened));
  }

  Result<Json> ask(const std::string& verb, Json body = Json::object()) {
    return client.ask({.verb = verb, .body = std::move(body)}, 30s);
  }
  Result<Json> submit(const sweeps::SweepPlan& plan, const std::string& key) {
    const std::string payload = to_payload(to_submission(plan));
    return client.ask({.verb = "submit", .key = key, .payload = payload}, 30s);
  }
  // Asks until the sweep is in this state.
  bool becomes(const std::string& wanted) {
    const auto end = std::chrono::steady_clock::now() + 60s;
    while (std::chrono::steady_clock::now() < end) {
      const auto status = ask("status");
      if (status && status->at("sweeps").at(0).at("state") == wanted) return true;
    }
    return false;
  }
};

TEST_F(Asking, ASubmittedSweepIsWorkedOnToItsEndAndTheServiceStays) {
  const auto life = begin();
  const auto submitted = submit(plan_of({4, 8}), "k");
  ASSERT_TRUE(submitted) << submitted.error().message;
  EXPECT_EQ(submitted->at("sweep"), "widths");
  EXPECT_EQ(submitted->at("tasks"), 8);
  EXPECT_EQ(submitted->at("known_tasks"), 0);
  const FakeAgent agent(endpoint, state);
  EXPECT_TRUE(becomes("done"));
  const Json answer = ask("result").value();
  const SweepResult result = result_from_json(answer).value();
  EXPECT_EQ(to_json(result), to_json(read_sweep(state, "").value()));
  EXPECT_EQ(result.subjects.size(), 3u);
  EXPECT_EQ(submit(plan_of({4, 8, 16}), "k2")->at("known_tasks"), 8) << "it still serves";
}

TEST_F(Asking, AWishUnderTheSameKeyHappensOnce) {
  const auto life = begin();
  ASSERT_TRUE(submit(plan_of({4}), "k"));
  ASSERT_TRUE(submit(plan_of({4}), "k"));
  EXPECT_EQ(ask("status")->at("sweeps").at(0).at("submission"), 1);
  ASSERT_TRUE(submit(plan_of({4}), "another"));
  EXPECT_EQ(ask("status")->at("sweeps").at(0).at("submission"), 2);
  EXPECT_EQ(submit(plan_of({4}), "").error().code, ErrorCode::kInvalidArgument);
}

TEST_F(Asking, AWishUnderTheSameKeyHappensOnceAcrossSchedulers) {
  Json answered;
  {
    const auto life = begin();
    answered = submit(plan_of({4}), "k").value();
    life->end();
  }
  const auto life = begin();
  EXPECT_EQ(submit(plan_of({4}), "k").value(), answered);
  EXPECT_EQ(ask("status")->at("sweeps").at(0).at("submission"), 1);
  // Only so many are kept.
  for (int i = 0; i < kWishesKept; ++i) {
    const auto changed = client.ask({.verb = "priority",
                                     .body = {{"sweep", "last"}, {"priority", i % 100}},
                                     .key = std::to_string(i)},
                                    30s);
    ASSERT_TRUE(changed) << changed.error().message;
  }
  ASSERT_TRUE(submit(plan_of({4}), "k"));
  EXPECT_EQ(ask("status")->at("sweeps").at(0).at("submission"), 2);
}

TEST_F(Asking, WhatWasAnsweredIsDurable) {
  {
    const auto life = begin();
    ASSERT_TRUE(submit(plan_of({4, 8}), "k"));
    life->end();
  }
  EXPECT_EQ(read_sweep(state, "widths")->subjects.size(), 3u);
  // The next one goes on with it without being told.
  const auto life = begin();
  const FakeAgent agent(endpoint, state);
  EXPECT_TRUE(becomes("done"));
}

TEST_F(Asking, ASubmissionThatIsNotRightIsRefusedWithTheReason) {
  const auto life = begin();
  const auto refused = [&](const Submission& submission) {
    const std::string payload = to_payload(submission);
    const auto answer = client.ask({.verb = "submit", .key = "k", .payload = payload}, 30s);
    EXPECT_FALSE(answer);
    if (answer) return std::string();
    EXPECT_EQ(answer.error().code, ErrorCode::kInvalidArgument);
    return answer.error().message;
  };
  Submission wrong = to_submission(plan_of({4}));
  wrong.sweep.set_name("../up");
  EXPECT_THAT(refused(wrong), HasSubstr("its name"));
  wrong = to_submission(plan_of({4}));
  wrong.tasks[0].set_directory("/etc");
  EXPECT_THAT(refused(wrong), HasSubstr("folder"));
  wrong = to_submission(plan_of({4}));
  wrong.tasks[0].set_needs(wrong.tasks[1].id());
  EXPECT_THAT(refused(wrong), HasSubstr("before"));
  wrong = to_submission(plan_of({4}));
  wrong.tasks.push_back(wrong.tasks[0]);
  EXPECT_THAT(refused(wrong), HasSubstr("twice"));
  wrong = to_submission(plan_of({4}));
  wrong.sweep.mutable_subjects(0)->set_train_task("train:none");
  EXPECT_THAT(refused(wrong), HasSubstr("not among"));
  wrong = to_submission(plan_of({4}));
  wrong.tasks[0].set_spec("no JSON");
  EXPECT_THAT(refused(wrong), HasSubstr("parameters"));
  EXPECT_EQ(ask("status")->at("sweeps").size(), 0u);
}

TEST(Submissions, StreamsThatDifferInTheirHookAloneAreAFamilyAndALoneOneIsOfNone) {
  const auto families = [](const sweeps::SweepPlan& plan) {
    std::map<std::string, std::set<std::string>> streams;  // by family
    for (const auto& task : to_submission(plan).tasks)
      if (task.kind() == protocol::TASK_KIND_TRAIN)
        streams[task.stream_family()].insert(task.stream());
    return streams;
  };
  sweeps::SweepPlan plan = plan_of({4, 8});
  EXPECT_EQ(families(plan).begin()->first, "");
  const auto add = [&](const auto& change) {
    plan.streams.push_back(plan.streams[0]);
    change(plan.streams.back().spec);
    sweeps::PlannedTrial trial = plan.trials[0];
    trial.spec.stream = plan.streams.back().spec;
    trial.identity = trial.spec.identity();
    plan.trials.push_back(trial);
  };
  add([](sweeps::StreamSpec& spec) { spec.hook = "blocks.0.hook_resid_post"; });
  add([](sweeps::StreamSpec& spec) { spec.joined = {"blocks.0.hook_resid_post"}; });
  add([](sweeps::StreamSpec& spec) { spec.filters.remove_bos = true; });
  const auto found = families(plan);
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found.begin()->first, "") << "that with a filter reads other rows";
  EXPECT_EQ(found.begin()->second.size(), 1u);
  EXPECT_EQ(found.rbegin()->first, plan.streams[0].spec.family());
  EXPECT_EQ(found.rbegin()->second.size(), 3u);
}

TEST_F(Asking, CommandsNameTrialsBySelectors) {
  const auto life = begin();
  ASSERT_TRUE(submit(plan_of({4, 8, 16}), "k"));
  const auto told = [&](Json body) {
    static int key = 0;
    return client.ask({.verb = "sweep", .body = std::move(body), .key = std::to_string(++key)},
                      30s);
  };
  ASSERT_TRUE(told({{"verb", "cancel"}, {"trials", {"0", "last"}}}));
  const Json rows = ask("status", {{"sweep", "last"}})->at("sweeps").at(0).at("rows");
  EXPECT_EQ(rows.at(0).at("state"), "cancelled");
  EXPECT_EQ(rows.at(1).at("state"), "waiting");
  EXPECT_EQ(rows.at(2).at("state"), "cancelled");
  EXPECT_EQ(told({{"verb", "cancel"}, {"trials", {"7"}}}).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(told({{"verb", "cancel"}, {"sweep", "none"}}).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(told({{"verb", "dance"}}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(told({{"verb", "cancel"}, {"trials", 7}}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(ask("dance").error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(ask("explain", {{"trial", "1-2"}}).error().code, ErrorCode::kInvalidArgument);
}

TEST_F(Asking, WhoWatchesHearsWhatHappenedSinceTheLastTime) {
  const auto life = begin();
  ASSERT_TRUE(submit(plan_of({4, 8}), "k"));
  const Json before = ask("events").value();
  EXPECT_THAT(before.at("events"), IsEmpty());
  const FakeAgent agent(endpoint, state);
  ASSERT_TRUE(becomes("done"));
  const Json after = ask("events", {{"since", before.at("next")}}).value();
  std::size_t finished = 0;
  for (const Json& event : after.at("events")) finished += event.at("event") == "trial.finished";
  EXPECT_EQ(finished, 2u);
  EXPECT_EQ(after.at("sweep").at("state"), "done");
  EXPECT_THAT(ask("events", {{"since", after.at("next")}})->at("events"), IsEmpty());
}

TEST_F(Asking, OnAFullDiskItIsReadOnlyAndGoesOnWhenThereIsRoom) {
  fs::create_directories(state);
  if (::mount("tmpfs", state.c_str(), "tmpfs", 0, "size=32m") != 0)
    GTEST_SKIP() << "may not mount a small disk";
  {
    const auto life = begin();
    ASSERT_TRUE(submit(plan_of({4}), "k"));
    int files = 0;
    const auto filler = [&] { return state / fmt::format("filler-{}", files); };
    while (write_file_atomically(filler(), std::string(std::size_t{16} << 10, 'x'))) ++files;
    ASSERT_GT(files, 0);
    // More than the room that the journal's log had set aside.
    std::vector<std::uint64_t> ks;
    for (std::uint64_t k = 1; k <= 63; ++k) ks.push_back(k);
    sweeps::SweepPlan large = plan_of(ks, "large");
    large.effective_yaml += "# " + std::string(std::size_t{12} << 20, 'x') + "\n";
    const std::string payload = to_payload(to_submission(large));
    const auto withheld = client.ask({.verb = "submit", .key = "l", .payload = payload}, 5s);
    EXPECT_FALSE(withheld);
    const Json status = ask("status").value();
    EXPECT_TRUE(status.contains("trouble")) << status.dump();
    EXPECT_EQ(submit(plan_of({8}, "refused"), "m").error().code, ErrorCode::kUnavailable);
    while (files > 0) {
      --files;
      fs::remove(filler());
    }
    const auto kept = client.ask({.verb = "submit", .key = "l", .payload = payload}, 30s);
    ASSERT_TRUE(kept) << kept.error().message;
    EXPECT_FALSE(ask("status")->contains("trouble"));
    life->end();
    EXPECT_EQ(read_sweep(state, "large")->subjects.size(), 64u);
    EXPECT_EQ(read_sweep(state, "refused").error().code, ErrorCode::kNotFound);
    EXPECT_THAT(verify_journal(state / "journal").value(), IsEmpty());
  }
  ::umount2(state.c_str(), MNT_DETACH);
}

TEST_F(Asking, TheStoreIsWhereItWasMade) {
  const fs::path store = dir.path() / "store";
  const Store made = open_store((fs::create_directories(state), state), store).value();
  EXPECT_EQ(made.directory, store);
  EXPECT_EQ(made.token.size(), 64u);
  const Store again = open_store(state, {}).value();
  EXPECT_EQ(again.directory, store);
  EXPECT_EQ(again.token, made.token);
  EXPECT_EQ(recorded_store(state).value(), store);
  const auto moved = open_store(state, dir.path() / "elsewhere");
  ASSERT_FALSE(moved);
  EXPECT_EQ(moved.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(moved.error().message, HasSubstr(store.string()));
}

TEST_F(Asking, AnEndpointOfAProcessThatIsGoneSaysNothing) {
  fs::create_directories(state);
  EXPECT_FALSE(living_endpoint(state));
  ASSERT_TRUE(write_endpoint(state, {.workers = "w",
                                     .clients = "c",
                                     .pid = ::getpid(),
                                     .host = this_host(),
                                     .build = "b",
                                     .epoch = 3}));
  const auto living = living_endpoint(state);
  ASSERT_TRUE(living);
  EXPECT_EQ(living->clients, "c");
  EXPECT_EQ(living->epoch, 3u);
  ASSERT_TRUE(write_endpoint(state, {.workers = "w",
                                     .clients = "c",
                                     .pid = 0x7ffffffe,
                                     .host = this_host(),
                                     .build = "b",
                                     .epoch = 3}));
  EXPECT_FALSE(living_endpoint(state));
}

}  // namespace
}  // namespace saesweep::scheduler
