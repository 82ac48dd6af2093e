// `saesweep` as a user types it, where no executor is needed: help, misuse, validate, doctor,
// version, and what reads a state directory that is not there.
#include "tests/e2e/program.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

#include "core/files.h"
#include "tests/support/json_schema_check.h"
#include "tests/support/sanitizers.h"
#include "tests/support/temp_dir.h"

namespace saesweep::test {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

constexpr const char* kVerbs[] = {"run",    "serve",    "worker",  "submit",     "status",
                                  "watch",  "top",      "workers", "explain",    "logs",
                                  "cancel", "pause",    "resume",  "retry",      "priority",
                                  "drain",  "validate", "keys",    "journal",    "leaderboard",
                                  "export", "bench",    "doctor",  "completion", "version"};

struct ProgramTest : testing::Test {
  TempDir dir;

  Finished saesweep(std::vector<std::string> words) {
    words.insert(words.begin(), SAESWEEP_PROGRAM);
    return Program(std::move(words), dir.path()).wait(std::chrono::seconds(60));
  }
  std::string write(const std::string& name, const std::string& text) {
    const fs::path path = dir.path() / name;
    EXPECT_TRUE(write_file_atomically(path, std::string_view(text)));
    return path.string();
  }
  // A shape for random weights and a sweep on it.
  std::string small_sweep() {
    fs::create_directories(dir.path() / "shape");
    write("shape/config.json",
          R"({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 2,
              "n_embd": 32, "n_head": 2, "n_inner": 64, "n_positions": 11, "n_ctx": 11,
              "vocab_size": 13, "activation_function": "gelu", "layer_norm_epsilon": 1e-05,
              "tie_word_embeddings": false})");
    return write("sweep.yaml",
                 "name: small\n"
                 "model: {path: shape, random_weights: true, seed: 1}\n"
                 "data: {source: othello, board: 4, play: uniform, games: 6k, seed: 0}\n"
                 "activations: {hooks: [blocks.1.hook_resid_post], tokens: 40k, holdout: 10%}\n"
                 "train: {tokens: 40k, batch: 256, warmup_steps: 5}\n"
                 "trials:\n"
                 "  - {arch: topk, d_sae: [64, 128], k: [4, 8]}\n"
                 "evaluate:\n  - core: {tokens: 2k}\n"
                 "baselines: [identity]\n");
  }
};

TEST_F(ProgramTest, HelpGoesToStdoutAndNamesEveryVerb) {
  const Finished help = saesweep({"--help"});
  EXPECT_EQ(help.exit_code, 0);
  for (const char* verb : kVerbs) EXPECT_THAT(help.out, HasSubstr(verb));
  EXPECT_THAT(help.out, HasSubstr("Examples:"));
  EXPECT_EQ(help.err, "");
}

TEST_F(ProgramTest, EveryVerbHasHelp) {
  for (const char* verb : kVerbs) {
    const Finished help = saesweep({verb, "--help"});
    EXPECT_EQ(help.exit_code, 0) << verb;
    EXPECT_THAT(help.out, HasSubstr("--help")) << verb;
    EXPECT_THAT(help.out, HasSubstr("Examples:\n  ")) << verb;
  }
}

TEST_F(ProgramTest, VerbsThatAskSayHowToStartAScheduler) {
  const std::vector<std::vector<std::string>> asking = {{"status"},
                                                        {"watch"},
                                                        {"top"},
                                                        {"workers"},
                                                        {"explain", "0"},
                                                        {"logs", "0"},
                                                        {"cancel", "0"},
                                                        {"pause", "0"},
                                                        {"resume", "0"},
                                                        {"retry", "0"},
                                                        {"priority", "s", "1"},
                                                        {"drain", "w"}};
  for (std::vector<std::string> words : asking) {
    words.insert(words.end(), {"--state", (dir.path() / "none").string()});
    const Finished refused = saesweep(words);
    EXPECT_EQ(refused.exit_code, 3) << words[0];
    EXPECT_THAT(refused.err, AllOf(StartsWith("saesweep " + words[0] + ": "),
                                   HasSubstr("saesweep serve --state")));
    EXPECT_EQ(refused.out, "") << words[0];
  }
  EXPECT_FALSE(fs::exists(dir.path() / "none"));
}

TEST_F(ProgramTest, ADryRunSaysWhatASweepWouldBeAndAsksNobody) {
  const Finished json = saesweep({"submit", small_sweep(), "--dry-run", "--json"});
  ASSERT_EQ(json.exit_code, 0) << json.err;
  const Json dry = parse_json(json.out).value();
  EXPECT_THAT(JsonSchemaCheck::problems(dry, JsonSchemaCheck::schema("dry_run")), IsEmpty());
  EXPECT_EQ(dry["trials"], 4);
  EXPECT_EQ(dry["cohorts"], Json::array({4})) << "they read one stream";
  EXPECT_LT(dry["trial_memory_bytes"]["least"], dry["trial_memory_bytes"]["most"]);
  EXPECT_THAT(saesweep({"submit", small_sweep(), "--dry-run"}).out,
              HasSubstr("cohorts    1 (of 4"));
}

TEST_F(ProgramTest, CompletionKnowsEveryVerbAndItsFlags) {
  for (const char* shell : {"bash", "zsh", "fish"}) {
    const Finished script = saesweep({"completion", shell});
    ASSERT_EQ(script.exit_code, 0) << shell;
    for (const char* verb : kVerbs) EXPECT_THAT(script.out, HasSubstr(verb)) << shell;
    EXPECT_THAT(script.out, HasSubstr("insecure-loopback")) << shell;
  }
  // What bash makes of it.
  const std::string script =
      write("complete.bash", saesweep({"completion", "bash"}).out +
                                 "COMP_WORDS=(saesweep submit --wa); COMP_CWORD=2\n"
                                 "_saesweep; echo \"${COMPREPLY[*]}\"\n"
                                 "COMP_WORDS=(saesweep expl); COMP_CWORD=1\n"
                                 "_saesweep; echo \"${COMPREPLY[*]}\"\n");
  EXPECT_EQ(Program({"/bin/bash", script}, dir.path()).wait().out, "--watch\nexplain\n");
}

// Of processor time: what else the machine does is no concern of ours.
TEST_F(ProgramTest, HelpTakesFiftyMillisecondsAtMost) {
  if (test::kSanitized) GTEST_SKIP() << "sanitizers start slowly";
  const auto seconds_of_children = [] {
    rusage used{};
    getrusage(RUSAGE_CHILDREN, &used);
    const auto seconds = [](const timeval& time) {
      return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
    };
    return seconds(used.ru_utime) + seconds(used.ru_stime);
  };
  constexpr int kTimes = 20;
  const double before = seconds_of_children();
  for (int i = 0; i < kTimes; ++i) ASSERT_EQ(saesweep({"--help"}).exit_code, 0);
  EXPECT_LE((seconds_of_children() - before) / kTimes, 0.050);
}

TEST_F(ProgramTest, MisuseExitsWithTwoAndSaysWhatWouldBeRight) {
  struct Case {
    std::vector<std::string> words;
    std::string said;
  };
  const Case cases[] = {
      {{}, "Usage"},
      {{"leaderbord"}, "did you mean 'leaderboard'?"},
      {{"frobnicate"}, "'frobnicate' is not a verb"},
      {{"run"}, "FILE"},
      {{"run", "a.yaml", "--slotz", "2"}, "did you mean --slots?"},
      {{"run", "a.yaml", "--slots", "0"}, "--slots"},
      {{"run", "a.yaml", "--slots", "two"}, "--slots"},
      {{"--log-level", "loud", "version"}, "--log-level"},
      {{"export", "3"}, "--to"},
      {{"export", "3", "--to", "x", "--format", "onnx"}, "--format"},
      {{"export", "3", "--to", "x", "--format", "saelens"}, "native"},
      {{"leaderboard", "--json", "--csv"}, "--csv"},
      {{"bench"}, "bench"},
      {{"cancel"}, "of what?"},
      {{"completion", "csh"}, "csh"},
      {{"journal"}, "journal"},
      {{"serve", "--keys", "k", "--insecure-loopback"}, "--keys"},
      {{"submit", "a.yaml", "--wach"}, "did you mean --watch?"},
      {{"bench", "cache", "--bytes", "many"}, "--bytes"},
      {{"bench", "tasks", "--tasks", "many"}, "--tasks"},
      {{"bench", "tasks", "--slots", "0"}, "--slots"},
      {{"bench", "tasks", "--task-seconds", "-1"}, "--task-seconds"},
      {{"bench", "agents", "--agents", "0"}, "--agents"},
  };
  for (const Case& one : cases) {
    const Finished refused = saesweep(one.words);
    EXPECT_EQ(refused.exit_code, 2) << one.said;
    EXPECT_THAT(refused.err, HasSubstr(one.said));
    EXPECT_EQ(refused.out, "") << one.said;
  }
}

TEST_F(ProgramTest, GlobalFlagsMayStandOnEitherSideOfTheVerb) {
  EXPECT_EQ(saesweep({"--quiet", "--log-level", "debug", "version"}).exit_code, 0);
  EXPECT_EQ(saesweep({"version", "--quiet", "--log-level", "debug"}).exit_code, 0);
}

TEST_F(ProgramTest, VersionKeepsItsSchema) {
  const Finished version = saesweep({"version", "--json"});
  ASSERT_EQ(version.exit_code, 0);
  const Json json = parse_json(version.out).value();
  EXPECT_THAT(JsonSchemaCheck::problems(json, JsonSchemaCheck::schema("version")), IsEmpty());
  for (const char* library : {"RocksDB", "ZeroMQ", "protobuf", "yaml-cpp", "fmt"})
    EXPECT_TRUE(json["libraries"].contains(library)) << library;
  EXPECT_THAT(saesweep({"version"}).out, StartsWith("saesweep "));
}

TEST_F(ProgramTest, DoctorLooksAtTheMachineAndSaysWhatIsMissing) {
  const std::string nowhere = (dir.path() / "saesweep-task").string();
  const Finished doctor =
      saesweep({"doctor", "--json", "--state", dir.path().string(), "--task", nowhere});
  ASSERT_EQ(doctor.exit_code, 0) << doctor.err;
  const Json json = parse_json(doctor.out).value();
  EXPECT_THAT(JsonSchemaCheck::problems(json, JsonSchemaCheck::schema("doctor")), IsEmpty());
  std::map<std::string, Json> checks;
  for (const Json& check : json["checks"]) checks[check["name"]] = check;
  for (const char* name : {"cores", "memory", "disk", "executor", "libtorch", "gpu", "mpi"})
    EXPECT_TRUE(checks.contains(name)) << name;
  EXPECT_EQ(checks["executor"]["ok"], false);
  EXPECT_THAT(checks["executor"]["advice"].get<std::string>(), HasSubstr(nowhere));
  EXPECT_THAT(saesweep({"doctor", "--state", dir.path().string(), "--task", nowhere}).out,
              HasSubstr("cores"));
}

TEST_F(ProgramTest, ValidateCountsAndLeavesNothingBehind) {
  const std::string file = small_sweep();
  const Finished valid = saesweep({"validate", file, "--json"});
  ASSERT_EQ(valid.exit_code, 0) << valid.out << valid.err;
  const Json json = parse_json(valid.out).value();
  EXPECT_THAT(JsonSchemaCheck::problems(json, JsonSchemaCheck::schema("validate")), IsEmpty());
  EXPECT_EQ(json["trials"], 4);
  EXPECT_EQ(json["baselines"], 1);
  EXPECT_EQ(json["valid"], true);
  EXPECT_GT(json["memory_bytes"], 0);
  EXPECT_EQ(saesweep({"validate", file, "--set", "trials.0.k=4", "--json"}).exit_code, 0);
  EXPECT_THAT(saesweep({"validate", file}).out, AllOf(HasSubstr("small"), HasSubstr("4 topk")));
  EXPECT_FALSE(fs::exists("saesweep-data"));
  EXPECT_FALSE(fs::exists("saesweep-out"));
}

TEST_F(ProgramTest, ValidateShowsEveryErrorWithItsPlace) {
  const std::string file =
      write("bad.yaml", "name: bad\nmodell: {path: shape}\ndata: {source: othello, board: 5}\n");
  const Finished shown = saesweep({"validate", file});
  EXPECT_EQ(shown.exit_code, 2);
  EXPECT_THAT(shown.err, AllOf(HasSubstr("bad.yaml:2:1: modell"), HasSubstr("data.board")));
  const Finished json = saesweep({"validate", file, "--json"});
  EXPECT_EQ(json.exit_code, 2);
  const Json parsed = parse_json(json.out).value();
  EXPECT_THAT(JsonSchemaCheck::problems(parsed, JsonSchemaCheck::schema("validate")), IsEmpty());
  EXPECT_EQ(parsed["valid"], false);
  EXPECT_GE(parsed["errors"].size(), 2u);
}

TEST_F(ProgramTest, AFileThatIsNotThereIsMisuse) {
  for (const char* verb : {"run", "validate"}) {
    const Finished absent = saesweep({verb, (dir.path() / "absent.yaml").string()});
    EXPECT_EQ(absent.exit_code, 2) << verb;
    EXPECT_THAT(absent.err, HasSubstr("absent.yaml")) << verb;
  }
}

TEST_F(ProgramTest, AStateDirectoryThatIsNotThereIsNamed) {
  const std::string state = (dir.path() / "nowhere").string();
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"leaderboard", "--state", state},
        {"export", "0", "--to", dir.path().string(), "--state", state}}) {
    const Finished absent = saesweep(words);
    EXPECT_EQ(absent.exit_code, 2) << words[0];
    EXPECT_THAT(absent.err, HasSubstr(state));
    EXPECT_FALSE(fs::exists(state));
  }
}

TEST_F(ProgramTest, RunSaysAtOnceThatItCannotWriteItsResults) {
  const std::string file = small_sweep();
  const std::string taken = write("a-file", "not a folder");
  const Finished refused =
      saesweep({"run", file, "--state", (dir.path() / "state").string(), "--out", taken + "/out"});
  EXPECT_EQ(refused.exit_code, 3);
  EXPECT_THAT(refused.err, HasSubstr(taken));
  EXPECT_FALSE(fs::exists(dir.path() / "state"));
}

TEST_F(ProgramTest, RunSaysHowToGetTheExecutorThatIsMissing) {
  const std::string file = small_sweep();
  const Finished refused =
      saesweep({"run", file, "--state", (dir.path() / "state").string(), "--out",
                (dir.path() / "out").string(), "--task", (dir.path() / "no-task").string()});
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.err, HasSubstr((dir.path() / "no-task").string()));
}

TEST_F(ProgramTest, RunSaysThatTheExecutorDoesNotStart) {
  const std::string file = small_sweep();
  const Finished refused =
      saesweep({"run", file, "--state", (dir.path() / "state").string(), "--out",
                (dir.path() / "out").string(), "--task", "/bin/false"});
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.err, HasSubstr("does not start"));
}

TEST_F(ProgramTest, BenchCacheMeasuresAgainstARawFile) {
  const Finished bench = saesweep({"bench", "cache", "--bytes", "8MiB", "--rounds", "1", "--dir",
                                   dir.path().string(), "--json"});
  ASSERT_EQ(bench.exit_code, 0) << bench.err;
  const Json json = parse_json(bench.out).value();
  EXPECT_THAT(JsonSchemaCheck::problems(json, JsonSchemaCheck::schema("bench")), IsEmpty());
  EXPECT_EQ(json["bench"], "cache");
  EXPECT_GT(json["read_ratio"], 0);
  EXPECT_TRUE(json["machine"].contains("cores"));
  EXPECT_TRUE(json["versions"].contains("commit"));
}

TEST_F(ProgramTest, BringsTasksThatDoNothingThroughAnEncryptedScheduler) {
  const Finished bench =
      saesweep({"bench", "tasks", "--slots", "8", "--agents", "2", "--tasks", "200", "--rounds",
                "1", "--singles", "2", "--dir", dir.path().string(), "--json"});
  ASSERT_EQ(bench.exit_code, 0) << bench.err;
  const Json json = parse_json(bench.out).value();
  EXPECT_THAT(JsonSchemaCheck::problems(json, JsonSchemaCheck::schema("bench")), IsEmpty());
  EXPECT_EQ(json["tasks"], 200);
  EXPECT_GT(json["tasks_per_s"], 0);
  EXPECT_GT(json["baseline"]["tasks_per_s"], 0);
  EXPECT_LE(json["latency_ms"]["p50"], json["latency_ms"]["p99"]);
  EXPECT_EQ(json["recovery"]["tasks"], 8 + 200 + 2) << "the warm-up, a round, the singles";
  EXPECT_GT(json["recovery"]["journal_bytes_per_task"], 0);
  for (const auto& left : fs::directory_iterator(dir.path()))
    EXPECT_FALSE(left.path().filename().string().starts_with("saesweep-bench-")) << left.path();
}

TEST_F(ProgramTest, MeasuresTasksThatTakeAWhileAgainstFullSlots) {
  const Finished bench =
      saesweep({"bench", "tasks", "--slots", "4", "--tasks", "12", "--task-seconds", "0.1", "--dir",
                dir.path().string(), "--json"});
  ASSERT_EQ(bench.exit_code, 0) << bench.err;
  const Json json = parse_json(bench.out).value();
  EXPECT_THAT(JsonSchemaCheck::problems(json, JsonSchemaCheck::schema("bench")), IsEmpty());
  EXPECT_NEAR(json["baseline"]["seconds"], 0.3, 1e-9) << "12 tasks, 4 at a time";
  EXPECT_GE(json["seconds"], 0.3) << "a run takes as long as it was told to";
  EXPECT_GE(json["over_ideal"], 0);
}

TEST_F(ProgramTest, ASchedulerThatBeginsAnewTakesOverWhatItsAgentsRun) {
  const Finished bench = saesweep({"bench", "agents", "--agents", "4", "--slots", "8", "--members",
                                   "3", "--seconds", "1", "--dir", dir.path().string(), "--json"});
  ASSERT_EQ(bench.exit_code, 0) << bench.err;
  const Json json = parse_json(bench.out).value();
  EXPECT_THAT(JsonSchemaCheck::problems(json, JsonSchemaCheck::schema("bench")), IsEmpty());
  EXPECT_GT(json["idle"]["scheduler_cpu_share"], 0);
  EXPECT_GT(json["progress"]["points_per_s"], 0);
  EXPECT_LE(json["progress"]["ask_ms"]["p50"], json["progress"]["ask_ms"]["p99"]);
  EXPECT_GT(json["reconnect"]["seconds"], 0);
  EXPECT_EQ(json["reconnect"]["tasks"], 24);
  EXPECT_EQ(json["reconnect"]["tasks_begun_anew"], 0);
}

}  // namespace
}  // namespace saesweep::test
