// serve, worker, submit and the verbs that ask, as a user types them: real processes, real sockets,
// some of them killed.
#include "tests/e2e/cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <sstream>

#include "tests/support/json_schema_check.h"

namespace saesweep::test {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::IsEmpty;

std::size_t checkpoints(const fs::path& state) {
  std::size_t found = 0;
  std::error_code ignored;
  for (const auto& entry : fs::recursive_directory_iterator(state / "trials", ignored))
    found += entry.path().filename() == "manifest.json" ? 1 : 0;
  return found;
}

struct Cluster : testing::Test {
  ServedScene scene;

  std::string sweep_state(const std::string& place) {
    return scene.asked(place, {"status"}, "status")["sweeps"].at(0)["state"];
  }
};

TEST_F(Cluster, OfTwoWorkersGivesTheBytesOfARun) {
  scene.write("sweep.yaml", tiny_sweep("80k"));
  const auto expected = scene.calm();
  const auto scheduler = scene.serve("a");
  const auto one = scene.worker("one"), two = scene.worker("two", {"--idle-timeout", "2s"});
  const Finished submitted =
      scene.submit("a", {"--watch", "--json", "--out", scene.out("a").string()});
  ASSERT_EQ(submitted.exit_code, 0) << submitted.err << scheduler->err() << one->err();
  scene.expect_the_same("a", expected);
  const Json schema = JsonSchemaCheck::schema("events");
  std::string last;
  std::istringstream lines(submitted.out);
  for (std::string line; std::getline(lines, line);) {
    const Json event = parse_json(line).value_or(Json(line));
    EXPECT_THAT(JsonSchemaCheck::problems(event, schema), IsEmpty()) << line;
    last = event.value("event", "");
  }
  EXPECT_EQ(last, "sweep.finished");

  EXPECT_EQ(two->wait().exit_code, 0) << "an idle worker leaves: " << two->err();
  one->signal(SIGTERM);
  EXPECT_EQ(one->wait().exit_code, 0) << one->err();
  scheduler->signal(SIGTERM);
  EXPECT_EQ(scheduler->wait().exit_code, 0) << scheduler->err();
  EXPECT_FALSE(fs::exists(scene.state("a") / "endpoint.json"));
}

TEST_F(Cluster, SchedulerAndWorkerMayBeKilledAndNoByteChanges) {
  scene.write("sweep.yaml", tiny_sweep("1M", "0.2s"));
  const auto expected = scene.calm();
  auto scheduler = scene.serve("a");
  auto one = scene.worker("one"), two = scene.worker("two");
  ASSERT_EQ(scene.submit("a").exit_code, 0);
  ASSERT_TRUE(eventually([&] { return checkpoints(scene.state("a")) > 0; })) << one->err();

  scheduler->signal(SIGKILL);
  EXPECT_EQ(scheduler->wait().signal, SIGKILL);
  const std::size_t before = checkpoints(scene.state("a"));
  EXPECT_GT(one->children("saesweep-task").size() + two->children("saesweep-task").size(), 0u)
      << "workers go on while nobody serves";
  scheduler = scene.serve("a");
  EXPECT_GE(checkpoints(scene.state("a")), std::min<std::size_t>(before, 1));

  one->signal(SIGKILL);
  EXPECT_EQ(one->wait().signal, SIGKILL);
  const auto three = scene.worker("three");
  const Finished watched = scene.watch("a");
  ASSERT_EQ(watched.exit_code, 0) << watched.err << scheduler->err() << two->err() << three->err();
  scene.expect_the_same("a", expected);
}

TEST_F(Cluster, AnswersWhatIsAskedAndDoesWhatItIsTold) {
  scene.write("sweep.yaml", tiny_sweep("20M", "0.2s"));
  const auto scheduler = scene.serve("a");
  const Finished submitted = scene.submit("a", {"--json"});
  ASSERT_EQ(submitted.exit_code, 0) << submitted.err;
  EXPECT_THAT(JsonSchemaCheck::problems(parse_json(submitted.out).value_or(Json()),
                                        JsonSchemaCheck::schema("submit")),
              IsEmpty());
  EXPECT_EQ(sweep_state("a"), "waiting");
  Json why = scene.asked("a", {"explain", "0"}, "explain");
  EXPECT_EQ(why["tasks"][0]["reasons"][0]["code"], "no_worker") << why.dump();

  auto worker = scene.worker("one");
  ASSERT_TRUE(eventually([&] { return checkpoints(scene.state("a")) > 0; })) << worker->err();
  EXPECT_EQ(sweep_state("a"), "running");
  EXPECT_EQ(scene.asked("a", {"workers"}, "workers")["workers"][0]["name"], "one");
  EXPECT_EQ(scene.asked("a", {"top"}, "top")["runs"].size(), 1u);
  EXPECT_THAT(scene.ask("a", {"top"}).out, HasSubstr("one"));
  why = scene.asked("a", {"explain", "last"}, "explain");
  EXPECT_EQ(why["tasks"][0]["state"], "running") << why.dump();
  EXPECT_GE(why["tasks"][0]["attempts"].size(), 1u);
  EXPECT_EQ(scene.asked("a", {"status", "last"}, "status")["sweeps"][0]["rows"][0]["worker"],
            "one");
  EXPECT_EQ(scene.asked("a", {"logs", "0"}, "log")["state"], "unfinished");
  EXPECT_EQ(scene.asked("a", {"logs", "0", "--attempt", "1"}, "log")["attempt"], 1);
  const Finished no_such = scene.ask("a", {"logs", "0", "--attempt", "7"});
  EXPECT_EQ(no_such.exit_code, 2);
  EXPECT_THAT(no_such.err, HasSubstr("has no attempt 7; 1 would be right"));

  scene.asked("a", {"pause", "tiny"}, "command");
  EXPECT_EQ(sweep_state("a"), "paused");
  ASSERT_TRUE(eventually([&] { return scene.asked("a", {"top"}, "top")["runs"].empty(); }));
  scene.asked("a", {"resume", "last"}, "command");
  ASSERT_TRUE(eventually([&] { return sweep_state("a") == "running"; }));
  scene.asked("a", {"cancel", "1-2", "id:" + why["trial"].get<std::string>()}, "command");
  ASSERT_TRUE(eventually([&] {
    return scene.asked("a", {"status"}, "status")["sweeps"][0]["trials"]["cancelled"] == 3;
  }));
  EXPECT_EQ(scene.ask("a", {"cancel"}).exit_code, 2);
  EXPECT_EQ(scene.ask("a", {"cancel", "99"}).exit_code, 2);
  EXPECT_EQ(scene.ask("a", {"retry", "last", "--failed"}).exit_code, 2) << "nothing has failed";

  scene.asked("a", {"drain", "one"}, "command");
  EXPECT_EQ(worker->wait().exit_code, 0) << "a drained worker leaves: " << worker->err();
  scene.asked("a", {"cancel", "tiny"}, "command");
  EXPECT_EQ(sweep_state("a"), "cancelled");
  EXPECT_EQ(scene.ask("a", {"leaderboard"}).exit_code, 0);

  scene.asked("a", {"journal", "verify"}, "journal");
  EXPECT_TRUE(fs::exists(
      fs::path(scene.asked("a", {"journal", "backup"}, "journal")["backup"].get<std::string>()) /
      "CURRENT"));
  const Finished exported = scene.ask("a", {"journal", "export"});
  EXPECT_THAT(exported.out, HasSubstr(R"("family":"event")"));
}

TEST_F(Cluster, TakesUpWhatARunBeganAndSpeaksWithKeysByDefault) {
  scene.write("sweep.yaml", tiny_sweep("80k"));
  const auto expected = scene.calm();
  const auto scheduler = scene.serve("calm", {});
  const fs::path access = scene.state("calm") / "keys" / "worker.access";
  const auto worker =
      std::make_unique<Program>(scene.words({"worker", "--access", access.string(), "--state",
                                             (scene.path() / "w").string(), "--threads", "1"}),
                                scene.path());
  const auto stranger = scene.worker("stranger");  // without keys
  fs::remove_all(scene.out("calm"));
  ASSERT_EQ(scene.submit("calm", {"--set", "trials.2.l1=[0.05, 0.1]"}).exit_code, 0);
  const Finished watched = scene.watch("calm");
  ASSERT_EQ(watched.exit_code, 0) << watched.err << scheduler->err() << worker->err();
  const auto bytes = scene.results("calm");
  EXPECT_GT(bytes.size(), expected.size());
  for (const auto& [name, text] : expected)
    if (name != "leaderboard.json") {
      EXPECT_EQ(bytes.at(name), text) << name;
    }
  const Json workers = scene.asked("calm", {"workers"}, "workers")["workers"];
  EXPECT_EQ(workers.size(), 1u) << workers.dump();
}

TEST_F(Cluster, RefusesWhatItCannotServeSafely) {
  Finished refused = scene.saesweep({"serve", "--state", scene.state("x").string(), "--listen",
                                     "tcp://0.0.0.0:7077", "--insecure-loopback"});
  EXPECT_EQ(refused.exit_code, 2) << refused.err;
  EXPECT_FALSE(fs::exists(scene.state("x") / "journal"));
  refused = scene.saesweep({"worker"});
  EXPECT_EQ(refused.exit_code, 78);
  EXPECT_THAT(refused.err, HasSubstr("--access"));
  refused = scene.saesweep({"status", "--state", scene.state("x").string()});
  EXPECT_EQ(refused.exit_code, 3);
  EXPECT_THAT(refused.err, HasSubstr("saesweep serve"));

  const auto scheduler = scene.serve("a");
  const Finished second = scene.saesweep({"serve", "--state", scene.state("a").string(), "--listen",
                                          "tcp://127.0.0.1:*", "--insecure-loopback"});
  EXPECT_EQ(second.exit_code, 3) << second.err;
  EXPECT_THAT(second.err, HasSubstr(scene.state("a").string()));

  const Finished cramped =
      Program({"/bin/sh", "-c",
               "ulimit -n 512; exec " SAESWEEP_PROGRAM " serve --state b --listen "
               "tcp://127.0.0.1:* --insecure-loopback"},
              scene.path())
          .wait();
  EXPECT_EQ(cramped.exit_code, 3);
  EXPECT_THAT(cramped.err, HasSubstr("may open 512 files"));
}

// Of workers that share no folder with the scheduler. All of this is one machine, so the token by
// which a worker knows the scheduler's folder is put aside while workers begin.
struct Apart : Cluster {
  fs::path state = scene.state("a");
  void hide() const { fs::rename(state / "store-token", state / "store-token.gone"); }
  void show() const { fs::rename(state / "store-token.gone", state / "store-token"); }
  fs::path own(const std::string& worker) const { return scene.path() / (worker + "-worker"); }
};

TEST_F(Apart, WorkersThatShareNoFolderGiveTheBytesOfARun) {
  scene.write("sweep.yaml", tiny_sweep("300k", "0.2s"));
  const auto expected = scene.calm();
  const auto scheduler = scene.serve("a", {});  // with keys, on the data port too
  hide();
  const auto worker = [&](const std::string& name) {
    return std::make_unique<Program>(
        scene.words({"worker", "--access", (state / "keys" / "worker.access").string(), "--name",
                     name, "--threads", "1", "--memory", "1GiB", "--state", own(name).string()}),
        scene.path());
  };
  const auto one = worker("one"), two = worker("two");
  ASSERT_EQ(scene.submit("a").exit_code, 0);
  const Finished watched = scene.watch("a");
  ASSERT_EQ(watched.exit_code, 0) << watched.err << scheduler->err() << one->err() << two->err();
  scene.expect_the_same("a", expected);
  EXPECT_TRUE(fs::exists(own("one") / "served-by"));
  EXPECT_GT(checkpoints(own("one")) + checkpoints(own("two")), 0u) << "made in their own stores";
  EXPECT_EQ(checkpoints(state), 0u) << "of finished trials nothing is kept";
}

TEST_F(Apart, WorkersAndSchedulerMayBeKilledAndNoByteChanges) {
  scene.write("sweep.yaml", tiny_sweep("1M", "0.2s"));
  const auto expected = scene.calm();
  auto scheduler = scene.serve("a");
  hide();
  auto one = scene.worker("one");
  ASSERT_EQ(scene.submit("a").exit_code, 0);
  ASSERT_TRUE(eventually([&] { return checkpoints(state) > 0; })) << one->err();
  one->signal(SIGKILL);
  EXPECT_EQ(one->wait().signal, SIGKILL);
  fs::remove_all(own("one"));  // its machine is gone
  const auto two = scene.worker("two");
  // What travelled is where another goes on from.
  ASSERT_TRUE(eventually([&] { return checkpoints(own("two")) > 0; })) << two->err();

  scheduler->signal(SIGKILL);
  EXPECT_EQ(scheduler->wait().signal, SIGKILL);
  show();
  scheduler = scene.serve("a");  // its data port is another one
  hide();
  const auto three = scene.worker("three");
  const Finished watched = scene.watch("a");
  ASSERT_EQ(watched.exit_code, 0) << watched.err << scheduler->err() << two->err() << three->err();
  scene.expect_the_same("a", expected);
  EXPECT_TRUE(fs::exists(own("two") / "served-by"));
}

TEST_F(Apart, WithoutADataPortAWorkerSaysWhatWouldBeRight) {
  const auto scheduler = scene.serve("a", {"--insecure-loopback", "--data-listen", "off"});
  hide();
  const auto worker = scene.worker("one");
  const Finished refused = worker->wait();
  EXPECT_EQ(refused.exit_code, 78) << refused.err;
  EXPECT_THAT(refused.err, HasSubstr("--data-listen"));
}

}  // namespace
}  // namespace saesweep::test
