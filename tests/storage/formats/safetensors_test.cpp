#include "storage/formats/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "core/philox.h"
#include "tests/support/temp_dir.h"

namespace saesweep::storage {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// A file with this header and `data_bytes` bytes of data.
std::string file_of(std::string_view header, std::size_t data_bytes = 0) {
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(header.size() >> (8 * i) & 0xff);
  file += header;
  file.append(data_bytes, 'x');
  return file;
}

ErrorCode code_of(std::string file) {
  const auto parsed = Safetensors::parse(std::move(file));
  EXPECT_FALSE(parsed);
  return parsed ? ErrorCode::kNotFound : parsed.error().code;
}

TEST(Safetensors, WritesTheBytesOfTheFormat) {
  const std::vector<TensorToWrite> tensors = {
      {"b", "U8", {3}, bytes_of("xyz")},
      {"a", "BF16", {1, 2}, bytes_of("1234")},
  };
  const std::string header = R"({"__metadata__":{"format":"pt","step":"7"},)"
                             R"("b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
                             R"("a":{"dtype":"BF16","shape":[1,2],"data_offsets":[3,7]}})";
  ASSERT_EQ(header.size(), 151u);  // so one space reaches the next multiple of 8
  EXPECT_EQ(serialize_safetensors(tensors, {{"step", "7"}}),
            std::string("\x98\0\0\0\0\0\0\0", 8) + header + " xyz1234");
}

TEST(Safetensors, EveryTensorComesBackAsItWasWritten) {
  const test::TempDir dir;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed, "test.safetensors");
    std::vector<std::string> values(rng.below(5));
    std::vector<TensorToWrite> tensors;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::int64_t rows = rng.below(4), columns = rng.below(9);
      values[i].resize(static_cast<std::size_t>(rows * columns) * 4);
      for (char& c : values[i]) c = static_cast<char>(rng.below(256));
      tensors.push_back({fmt::format("t{}", i), "F32", {rows, columns}, bytes_of(values[i])});
    }
    const std::string file = serialize_safetensors(tensors, {{"seed", std::to_string(seed)}});
    const auto path = dir.path() / std::to_string(seed);
    std::ofstream(path, std::ios::binary) << file;
    for (const auto& read : {Safetensors::open(path), Safetensors::parse(file)}) {
      ASSERT_TRUE(read) << read.error().message;
      EXPECT_EQ(read->tensors().size(), tensors.size());
      EXPECT_EQ(read->metadata().at("seed"), std::to_string(seed));
      EXPECT_EQ(read->metadata().at("format"), "pt");
      for (const TensorToWrite& tensor : tensors) {
        const TensorView* view = read->find(tensor.name);
        ASSERT_NE(view, nullptr);
        EXPECT_EQ(view->dtype, tensor.dtype);
        EXPECT_EQ(view->shape, tensor.shape);
        EXPECT_EQ(text_of(view->bytes), text_of(tensor.bytes));
      }
    }
  }
}

TEST(Safetensors, ScalarsHaveAnEmptyShape) {
  const std::vector<TensorToWrite> tensors = {{"s", "F64", {}, bytes_of("12345678")}};
  const auto read = Safetensors::parse(serialize_safetensors(tensors));
  ASSERT_TRUE(read);
  EXPECT_TRUE(read->find("s")->shape.empty());
  EXPECT_EQ(text_of(read->find("s")->bytes), "12345678");
}

TEST(Safetensors, ReadsOtherWritersHeadersInAnyOrderAndWithoutMetadata) {
  const auto read = Safetensors::parse(
      file_of(R"({"a":{"dtype":"I64","shape":[1],"data_offsets":[2,10]},"b":{"shape":[2],)"
              R"("data_offsets":[0,2],"dtype":"BOOL"}}  )",
              10));
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(read->find("a")->bytes.data(), read->find("b")->bytes.data() + 2);
  EXPECT_EQ(read->find("c"), nullptr);
}

TEST(Safetensors, AnEmptyHeaderIsAFileWithoutTensors) {
  const auto read = Safetensors::parse(file_of("{}"));
  ASSERT_TRUE(read);
  EXPECT_TRUE(read->tensors().empty());
}

struct Broken {
  const char* why;
  std::string file;
};

std::vector<Broken> broken_files() {
  const auto one = [](std::string_view fields, std::size_t data_bytes) {
    return file_of(R"({"a":{)" + std::string(fields) + "}}", data_bytes);
  };
  std::string too_long = file_of("{}");
  too_long[1] = 1;
  std::string huge = file_of("{}");
  for (int i = 0; i < 8; ++i) huge[static_cast<std::size_t>(i)] = '\xff';
  return {
      {"empty", ""},
      {"seven bytes", std::string(7, '\0')},
      {"header beyond the file", too_long},
      {"header of 2^64 - 1 bytes", huge},
      {"header of no bytes", file_of("")},
      {"no JSON", file_of("{\"a\"")},
      {"not an object", file_of("[]")},
      {"leading space", file_of(" {}")},
      {"text after the object", file_of("{} x")},
      {"nested deeply", file_of(R"({"a":)" + std::string(50, '[') + std::string(50, ']') + "}")},
      {"a name twice", file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                               R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                               2)},
      {"metadata that is no object", file_of(R"({"__metadata__":3})")},
      {"metadata that is no string", file_of(R"({"__metadata__":{"a":1}})")},
      {"entry that is no object", file_of(R"({"a":1})")},
      {"no dtype", one(R"("shape":[1],"data_offsets":[0,1])", 1)},
      {"unknown dtype", one(R"("dtype":"F31","shape":[1],"data_offsets":[0,4])", 4)},
      {"no shape", one(R"("dtype":"U8","data_offsets":[0,1])", 1)},
      {"negative size", one(R"("dtype":"U8","shape":[-1],"data_offsets":[0,1])", 1)},
      {"fractional size", one(R"("dtype":"U8","shape":[1.0],"data_offsets":[0,1])", 1)},
      {"shape that overflows",
       one(R"("dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0])", 0)},
      {"no offsets", one(R"("dtype":"U8","shape":[1])", 1)},
      {"one offset", one(R"("dtype":"U8","shape":[1],"data_offsets":[0])", 1)},
      {"negative offset", one(R"("dtype":"U8","shape":[1],"data_offsets":[-1,0])", 1)},
      {"end before begin", one(R"("dtype":"U8","shape":[1],"data_offsets":[1,0])", 1)},
      {"shape larger than the offsets", one(R"("dtype":"U8","shape":[2],"data_offsets":[0,1])", 1)},
      {"beyond the data", one(R"("dtype":"U8","shape":[2],"data_offsets":[0,2])", 1)},
      {"hole before the first", one(R"("dtype":"U8","shape":[1],"data_offsets":[1,2])", 2)},
      {"bytes after the last", one(R"("dtype":"U8","shape":[1],"data_offsets":[0,1])", 2)},
      {"overlap", file_of(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                          R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                          3)},
      {"hole between", file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                               R"("b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
                               3)},
  };
}

TEST(Safetensors, BrokenFilesAreCorrupted) {
  for (const Broken& broken : broken_files()) {
    SCOPED_TRACE(broken.why);
    EXPECT_EQ(code_of(broken.file), ErrorCode::kCorrupted);
  }
}

TEST(Safetensors, BrokenFilesOnDiskAreCorruptedAndNamed) {
  const test::TempDir dir;
  for (const Broken& broken : broken_files()) {
    SCOPED_TRACE(broken.why);
    std::ofstream(dir.path() / "broken", std::ios::binary | std::ios::trunc) << broken.file;
    const auto read = Safetensors::open(dir.path() / "broken");
    ASSERT_FALSE(read);
    EXPECT_EQ(read.error().code, ErrorCode::kCorrupted);
    EXPECT_NE(read.error().message.find((dir.path() / "broken").string()), std::string::npos);
  }
}

TEST(Safetensors, EveryTruncationIsCorrupted) {
  const std::vector<TensorToWrite> tensors = {{"a", "U8", {3}, bytes_of("xyz")},
                                              {"b", "F32", {1}, bytes_of("1234")}};
  const std::string whole = serialize_safetensors(tensors);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_EQ(code_of(whole.substr(0, size)), ErrorCode::kCorrupted) << size;
  }
}

TEST(Safetensors, AnAbsentFileIsNotFound) {
  const auto read = Safetensors::open("/nonexistent/file.safetensors");
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, ErrorCode::kNotFound);
}

TEST(SafetensorsDeathTest, WritingBytesThatDoNotFillTheShapeIsOurBug) {
  const std::vector<TensorToWrite> tensors = {{"a", "U8", {4}, bytes_of("xyz")}};
  EXPECT_DEATH(serialize_safetensors(tensors), "needs 4 bytes and has 3");
}

}  // namespace
}  // namespace saesweep::storage
