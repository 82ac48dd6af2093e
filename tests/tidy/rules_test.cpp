// The rules themselves, on planted violations: a rule that finds nothing proves nothing.
#include "tests/tidy/rules.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace saesweep::tidy {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::vector<std::string> messages(const std::vector<Violation>& violations) {
  std::vector<std::string> texts;
  for (const Violation& violation : violations) texts.push_back(violation.message);
  return texts;
}

// What is wrong with a source at `path` that has this one include and is otherwise in order.
std::vector<std::string> including(std::string_view path, std::string_view include) {
  const std::string text = "// What it is for.\n#include " + std::string(include) + "\n";
  return messages(check_file(path, text));
}

std::vector<std::string> of_text(std::string_view path, std::string_view text) {
  return messages(check_file(path, text));
}

struct Case {
  std::string_view path;
  std::string_view include;
};

TEST(IncludeTest, FindsEveryFormOfTheDirective) {
  const auto includes = includes_of(
      "#include <a/b.h>\n"
      "  #  include \"c.h\"  // why\n"
      "// #include <commented.h>\n"
      "text = \"#include <quoted.h>\";\n"
      "#define include\n"
      "#include MACRO\n"
      "#include <unfinished\n"
      "#include <last>");
  ASSERT_EQ(includes.size(), 3u);
  EXPECT_EQ(includes[0].target, "a/b.h");
  EXPECT_FALSE(includes[0].quoted);
  EXPECT_EQ(includes[1].target, "c.h");
  EXPECT_TRUE(includes[1].quoted);
  EXPECT_EQ(includes[1].line, 2);
  EXPECT_EQ(includes[2].target, "last");
}

TEST(RoomTest, TheLongestFolderNamesTheRoom) {
  EXPECT_EQ(room_of("core/json.h"), "core");
  EXPECT_EQ(room_of("storage/journal.h"), "storage");
  EXPECT_EQ(room_of("storage/formats/safetensors.h"), "storage/formats");
  EXPECT_EQ(room_of("scheduler/http/http_server.h"), "scheduler");
  EXPECT_EQ(room_of("scheduler/cli/main.cpp"), "scheduler/cli");
  EXPECT_EQ(room_of("worker/agent/chunk_service.h"), "worker/agent");
  EXPECT_EQ(room_of("worker/agents.h"), "worker");
  EXPECT_EQ(room_of("corelike/json.h"), "");
}

TEST(DirectionTest, RoomsSeeWhatIsBelowThem) {
  for (const Case& fine : std::vector<Case>{
           {"metrics/a.cpp", "\"core/json.h\""},
           {"sweeps/a.cpp", "\"sweeps/spec.h\""},
           {"storage/a.cpp", "\"storage/formats/safetensors.h\""},
           {"scheduler/protocol/a.cpp", "\"sweeps/spec.h\""},
           {"scheduler/leases.cpp", "\"storage/journal.h\""},
           {"scheduler/leases.cpp", "\"scheduler/protocol/messages.pb.h\""},
           {"scheduler/cli/run.cpp", "\"worker/agent/agent.h\""},
           {"scheduler/cli/run.cpp", "\"scheduler/http/http_server.h\""},
           {"worker/agent/a.cpp", "\"storage/activation_cache.h\""},
           {"worker/executor/a.cpp", "\"worker/training/trainer.h\""},
           {"worker/executor/a.cpp", "\"scheduler/protocol/messages.pb.h\""},
           {"worker/activations/chunk_client.cpp", "\"scheduler/protocol/messages.pb.h\""},
           {"worker/models/a.cpp", "\"storage/formats/safetensors.h\""},
           {"tests/e2e/a.cpp", "\"worker/agent/agent.h\""},
           {"tests/e2e/a.cpp", "\"tests/support/temp_dir.h\""}})
    EXPECT_THAT(including(fine.path, fine.include), IsEmpty()) << fine.path << fine.include;
}

TEST(DirectionTest, RoomsDoNotSeeWhatIsAboveOrBesideThem) {
  for (const Case& wrong :
       std::vector<Case>{{"core/a.cpp", "\"sweeps/spec.h\""},
                         {"metrics/a.cpp", "\"storage/journal.h\""},
                         {"sweeps/a.cpp", "\"metrics/scores/core.h\""},
                         {"storage/a.cpp", "\"sweeps/spec.h\""},
                         {"storage/formats/a.cpp", "\"storage/journal.h\""},
                         {"scheduler/protocol/a.cpp", "\"storage/journal.h\""},
                         {"scheduler/protocol/a.cpp", "\"scheduler/leases.h\""},
                         {"scheduler/leases.cpp", "\"worker/agent/agent.h\""},
                         {"scheduler/leases.cpp", "\"scheduler/cli/run.h\""},
                         {"scheduler/leases.cpp", "\"worker/models/transformer.h\""},
                         {"scheduler/cli/run.cpp", "\"worker/models/transformer.h\""},
                         {"worker/agent/a.cpp", "\"sweeps/spec.h\""},
                         {"worker/agent/a.cpp", "\"worker/models/transformer.h\""},
                         {"worker/agent/a.cpp", "\"scheduler/leases.h\""},
                         {"worker/executor/a.cpp", "\"worker/agent/agent.h\""},
                         {"worker/executor/a.cpp", "\"storage/activation_cache.h\""},
                         {"worker/executor/a.cpp", "\"scheduler/leases.h\""}})
    EXPECT_THAT(including(wrong.path, wrong.include), ElementsAre(HasSubstr("does not see")))
        << wrong.path << wrong.include;
}

TEST(DirectionTest, TheMessagesAreForTheirReadersOnly) {
  for (const std::string_view path : {"worker/training/a.cpp", "worker/activations/harvest.cpp"})
    EXPECT_THAT(including(path, "\"scheduler/protocol/messages.pb.h\""),
                ElementsAre(HasSubstr("the messages are for")));
}

TEST(DirectionTest, NothingDependsOnTests) {
  EXPECT_THAT(including("storage/a.cpp", "\"tests/support/temp_dir.h\""),
              ElementsAre(HasSubstr("nothing depends on tests")));
}

TEST(DirectionTest, OurHeadersAreNamedFromTheRoot) {
  EXPECT_THAT(including("storage/a.cpp", "\"journal.h\""),
              ElementsAre(HasSubstr("from the repository root")));
  EXPECT_THAT(including("storage/a.cpp", "\"../core/json.h\""),
              ElementsAre(HasSubstr("from the repository root")));
}

TEST(DirectionTest, BracketsDoNotHideADirection) {
  EXPECT_THAT(including("core/a.cpp", "<sweeps/spec.h>"), ElementsAre(HasSubstr("does not see")));
}

TEST(WallTest, ALibraryIsFreeInItsRoom) {
  for (const Case& fine : std::vector<Case>{{"storage/a.cpp", "<rocksdb/db.h>"},
                                            {"scheduler/protocol/link.cpp", "<zmq.hpp>"},
                                            {"sweeps/a.cpp", "<yaml-cpp/yaml.h>"},
                                            {"metrics/telemetry/a.cpp", "<prometheus/registry.h>"},
                                            {"worker/sae/a.cpp", "<ATen/ATen.h>"},
                                            {"scheduler/http/a.cpp", "<boost/beast/core.hpp>"},
                                            {"scheduler/cli/main.cpp", "<CLI/CLI.hpp>"},
                                            {"worker/executor/main.cpp", "<CLI/CLI.hpp>"},
                                            {"core/json.h", "<nlohmann/json.hpp>"},
                                            {"core/digest.cpp", "<xxhash.h>"},
                                            {"core/log.cpp", "<spdlog/spdlog.h>"},
                                            {"storage/a.cpp", "<fmt/format.h>"},
                                            {"storage/a.cpp", "<sys/stat.h>"},
                                            {"storage/a.cpp", "<vector>"},
                                            {"tests/core/a.cpp", "<gtest/gtest.h>"},
                                            {"tests/storage/a.cpp", "<rocksdb/db.h>"}}) {
    const auto found = including(fine.path, fine.include);
    if (fine.path.ends_with(".h"))
      EXPECT_THAT(found, ElementsAre(HasSubstr("#pragma once"))) << fine.path << fine.include;
    else
      EXPECT_THAT(found, IsEmpty()) << fine.path << fine.include;
  }
}

TEST(WallTest, ALibraryOutsideItsRoomIsFound) {
  for (const Case& wrong : std::vector<Case>{{"scheduler/a.cpp", "<rocksdb/db.h>"},
                                             {"storage/formats/a.cpp", "<rocksdb/db.h>"},
                                             {"worker/agent/a.cpp", "<zmq.hpp>"},
                                             {"scheduler/a.cpp", "<zmq.h>"},
                                             {"scheduler/a.cpp", "<google/protobuf/message.h>"},
                                             {"scheduler/a.cpp", "<yaml-cpp/yaml.h>"},
                                             {"metrics/scores/a.cpp", "<prometheus/registry.h>"},
                                             {"scheduler/a.cpp", "<torch/torch.h>"},
                                             {"storage/a.cpp", "<c10/core/Device.h>"},
                                             {"worker/agent/a.cpp", "<ATen/ATen.h>"},
                                             {"worker/data/a.cpp", "\"ATen/ATen.h\""},
                                             {"worker/products/a.cpp", "<ATen/ATen.h>"},
                                             {"scheduler/a.cpp", "<boost/asio.hpp>"},
                                             {"sweeps/a.cpp", "<CLI/CLI.hpp>"},
                                             {"storage/a.cpp", "<nlohmann/json.hpp>"},
                                             {"core/files.cpp", "<openssl/evp.h>"},
                                             {"core/philox.cpp", "<xxhash.h>"},
                                             {"core/files.cpp", "<spdlog/spdlog.h>"},
                                             {"storage/a.cpp", "<tl/expected.hpp>"},
                                             {"worker/sae/a.cpp", "<cuda_runtime.h>"},
                                             {"worker/sae/a.cpp", "<mpi.h>"},
                                             {"core/a.cpp", "<gtest/gtest.h>"}})
    EXPECT_THAT(including(wrong.path, wrong.include), ElementsAre(HasSubstr("behind the wall")))
        << wrong.path << wrong.include;
}

TEST(WallTest, ANewLibraryNeedsARoom) {
  EXPECT_THAT(including("storage/a.cpp", "<absl/status/status.h>"),
              ElementsAre(HasSubstr("without a room of its own")));
}

TEST(FileTest, AHeaderSaysPragmaOnce) {
  EXPECT_THAT(of_text("core/a.h", "// For.\n#pragma once\n"), IsEmpty());
  EXPECT_THAT(of_text("core/a.h", "// For.\n"), ElementsAre(HasSubstr("#pragma once")));
}

TEST(FileTest, OpensWithAComment) {
  EXPECT_THAT(of_text("core/a.h", "#pragma once\n"), ElementsAre(HasSubstr("opens with")));
  EXPECT_THAT(of_text("core/a.cpp", "int a;\n"), ElementsAre(HasSubstr("opens with")));
}

TEST(FileTest, ASourceMayOpenWithTheHeaderOfWhatItMakes) {
  EXPECT_THAT(of_text("core/a.cpp", "#include \"core/a.h\"\n"), IsEmpty());
  EXPECT_THAT(of_text("core/a.cpp", "#include <vector>\n"), ElementsAre(HasSubstr("opens with")));
  EXPECT_THAT(of_text("core/b.h", "#include \"core/a.h\"\n#pragma once\n"),
              ElementsAre(HasSubstr("opens with")));
}

TEST(FileTest, HasAtMostSixHundredLines) {
  std::string text = "// For.\n";
  for (int i = 1; i < 600; ++i) text += "int a;\n";
  EXPECT_THAT(of_text("core/a.cpp", text), IsEmpty());
  EXPECT_THAT(of_text("core/a.cpp", text + "int a;\n"), ElementsAre(HasSubstr("601 lines")));
}

TEST(FileTest, PromisesNothingForLater) {
  const std::string later = std::string("TO") + "DO";
  EXPECT_THAT(of_text("core/a.cpp", "// For.\nint a;  // " + later + ": b\n"),
              ElementsAre(HasSubstr("finish it")));
  EXPECT_THAT(of_text("core/a.cpp", "// For.\nint " + later + "S;\n"), IsEmpty());
  EXPECT_THAT(of_text("core/a.cpp", "// For.\nauto name = \"run-XXXXXX\";\n"), IsEmpty());
}

TEST(FileTest, ALintSuppressionHasACheckAndAReason) {
  const std::string mark = std::string("// NO") + "LINT";
  EXPECT_THAT(of_text("core/a.cpp", "// For.\nint a;  " + mark + "\n"),
              ElementsAre(HasSubstr("the check and the reason")));
  EXPECT_THAT(of_text("core/a.cpp", "// For.\nint a;  " + mark + "(bugprone-a)\n"),
              ElementsAre(HasSubstr("the check and the reason")));
  EXPECT_THAT(of_text("core/a.cpp", "// For.\nint a;  " + mark + "(bugprone-a): as b wants\n"),
              IsEmpty());
}

TEST(FileTest, AViolationSaysWhere) {
  const auto violations = check_file("core/a.cpp", "// For.\n\n#include <zmq.h>\n");
  ASSERT_EQ(violations.size(), 1u);
  EXPECT_EQ(violations[0].path, "core/a.cpp");
  EXPECT_EQ(violations[0].line, 3);
}

TEST(CircleTest, HeadersThatIncludeEachOtherAreFound) {
  const std::map<std::string, std::string> files = {{"core/a.h", "#include \"core/b.h\"\n"},
                                                    {"core/b.h", "#include \"core/c.h\"\n"},
                                                    {"core/c.h", "#include \"core/a.h\"\n"},
                                                    {"core/d.h", "#include \"core/a.h\"\n"}};
  EXPECT_THAT(messages(check_circles(files)),
              ElementsAre("includes itself: core/a.h -> core/b.h -> core/c.h -> core/a.h"));
}

TEST(CircleTest, TwoWaysToOneHeaderAreNoCircle) {
  const std::map<std::string, std::string> files = {
      {"core/a.h", "#include \"core/b.h\"\n#include \"core/c.h\"\n"},
      {"core/b.h", "#include \"core/c.h\"\n"},
      {"core/c.h", "#include <vector>\n"}};
  EXPECT_THAT(check_circles(files), IsEmpty());
}

}  // namespace
}  // namespace saesweep::tidy
