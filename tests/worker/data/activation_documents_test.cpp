// Documents made of rows that somebody else harvested: dtypes, shards, what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/digest.h"
#include "core/dtype.h"
#include "core/files.h"
#include "core/philox.h"
#include "storage/formats/safetensors.h"
#include "tests/support/temp_dir.h"
#include "worker/data/documents.h"

namespace saesweep::worker {
namespace {

using testing::HasSubstr;

std::vector<float> normal_values(std::size_t count, std::uint64_t index = 0) {
  Rng rng(3, "test.activations", index);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(rng.normal());
  return values;
}

template <class T>
std::string tensor_file(const std::string& name, const std::string& dtype,
                        const std::vector<std::int64_t>& shape, const std::vector<T>& values) {
  const storage::TensorToWrite tensor{name, dtype, shape, std::as_bytes(std::span(values))};
  return storage::serialize_safetensors({&tensor, 1});
}

struct ActivationDocumentsTest : testing::Test {
  test::TempDir dir;

  sweeps::DataSpec data(const std::string& name) const {
    sweeps::DataSpec spec;
    spec.source = "activations";
    spec.path = (dir.path() / name).string();
    spec.tensor = "x";
    return spec;
  }
  void write(const std::string& name, const std::string& bytes) const {
    ASSERT_TRUE(make_directories((dir.path() / name).parent_path()));
    ASSERT_TRUE(write_file_atomically(dir.path() / name, bytes));
  }
  void expect_refused(const std::string& name, ErrorCode code,
                      std::initializer_list<const char*> words) const {
    const auto opened = ActivationDocuments::open(data(name), 0.1);
    ASSERT_FALSE(opened) << name;
    EXPECT_EQ(opened.error().code, code) << opened.error().message;
    for (const char* word : words) EXPECT_THAT(opened.error().message, HasSubstr(word));
  }
};

std::vector<float> all_rows(const ActivationDocuments& documents) {
  const auto width = static_cast<std::size_t>(documents.d_in());
  std::vector<float> rows;
  for (std::uint64_t i = 0; i < documents.count(); ++i) {
    const std::size_t before = rows.size();
    rows.resize(before + documents.rows(i) * width);
    documents.read(i, rows.data() + before);
  }
  return rows;
}

TEST_F(ActivationDocumentsTest, EachRunOf1024RowsIsADocumentAndTheLastIsShorter) {
  const auto values = normal_values(2500 * 3);
  write("a.safetensors", tensor_file("x", "F32", {2500, 3}, values));
  const auto documents = ActivationDocuments::open(data("a.safetensors"), 0.1).value();
  ASSERT_EQ(documents->count(), 3u);
  EXPECT_EQ(documents->d_in(), 3);
  EXPECT_EQ(documents->max_rows(), 1024u);
  EXPECT_EQ(documents->rows(0), 1024u);
  EXPECT_EQ(documents->rows(1), 1024u);
  EXPECT_EQ(documents->rows(2), 452u);
  EXPECT_EQ(all_rows(*documents), values);
}

TEST_F(ActivationDocumentsTest, Bfloat16IsReadExactly) {
  const auto values = normal_values(100 * 4);
  std::vector<std::uint16_t> stored;
  std::vector<float> expected;
  for (const float value : values) {
    stored.push_back(to_bf16(value));
    expected.push_back(from_bf16(stored.back()));
  }
  write("a.safetensors", tensor_file("x", "BF16", {100, 4}, stored));
  EXPECT_EQ(all_rows(*ActivationDocuments::open(data("a.safetensors"), 0).value()), expected);
}

TEST_F(ActivationDocumentsTest, Float16IsReadExactlyWithSubnormalsAndInfinities) {
  // Bits and values from IEEE 754 binary16.
  const std::vector<std::uint16_t> stored = {0x3c00, 0xc000, 0x7bff, 0x0400, 0x03ff,
                                             0x0001, 0x8001, 0x0000, 0x3555, 0x7c00};
  const float tiny = std::ldexp(1.0F, -24);
  const std::vector<float> expected = {
      1,    -2,    65504, std::ldexp(1.0F, -14), 1023 * tiny,
      tiny, -tiny, 0,     0.333251953125F,       std::numeric_limits<float>::infinity()};
  write("a.safetensors", tensor_file("x", "F16", {5, 2}, stored));
  EXPECT_EQ(all_rows(*ActivationDocuments::open(data("a.safetensors"), 0).value()), expected);

  write("b.safetensors", tensor_file("x", "F16", {1, 1}, std::vector<std::uint16_t>{0x8000}));
  EXPECT_TRUE(
      std::signbit(all_rows(*ActivationDocuments::open(data("b.safetensors"), 0).value()).front()));
}

TEST_F(ActivationDocumentsTest, AFolderIsItsShardsInNameOrder) {
  const auto first = normal_values(700 * 2, 1), second = normal_values(800 * 2, 2),
             third = normal_values(10 * 2, 3);
  write("shards/b.safetensors", tensor_file("x", "F32", {800, 2}, second));
  write("shards/c.safetensors", tensor_file("x", "F32", {10, 2}, third));
  write("shards/a.safetensors", tensor_file("x", "F32", {700, 2}, first));
  write("shards/aa.safetensors", tensor_file("x", "F32", {0, 2}, std::vector<float>{}));
  write("shards/readme.txt", "no shard");
  auto expected = first;
  expected.insert(expected.end(), second.begin(), second.end());
  expected.insert(expected.end(), third.begin(), third.end());
  const auto documents = ActivationDocuments::open(data("shards"), 0.5).value();
  EXPECT_EQ(documents->count(), 2u) << "a document may lie in two shards";
  EXPECT_EQ(all_rows(*documents), expected);

  // Cut differently, it is the same data with the same documents held out.
  write("whole.safetensors", tensor_file("x", "F32", {1510, 2}, expected));
  const auto whole = ActivationDocuments::open(data("whole.safetensors"), 0.5).value();
  EXPECT_EQ(all_rows(*whole), expected);
  EXPECT_EQ(whole->held_out_documents(), documents->held_out_documents());
}

TEST_F(ActivationDocumentsTest, TheHashOfTheStoredRowBytesDecidesWhatIsHeldOut) {
  const std::size_t rows = 64 * 1024 + 5;
  const auto values = normal_values(rows);
  std::vector<std::uint16_t> stored;
  for (const float value : values) stored.push_back(to_bf16(value));
  write("a.safetensors", tensor_file("x", "BF16", {static_cast<std::int64_t>(rows), 1}, stored));
  const auto documents = ActivationDocuments::open(data("a.safetensors"), 0.3).value();
  std::vector<std::uint64_t> expected;
  for (std::uint64_t i = 0; i < documents->count(); ++i) {
    const auto bytes = std::as_bytes(
        std::span(stored).subspan(i * 1024, std::min<std::size_t>(1024, rows - i * 1024)));
    if (static_cast<long double>(xxh3_64(bytes)) < 0.3L * 18446744073709551616.0L)
      expected.push_back(i);
    EXPECT_EQ(documents->held_out(i), !expected.empty() && expected.back() == i);
  }
  EXPECT_EQ(documents->held_out_documents(), expected);
  EXPECT_GT(expected.size(), 5u);
  EXPECT_LT(expected.size(), 40u);
}

TEST_F(ActivationDocumentsTest, WhatIsNotThereIsNotFound) {
  expect_refused("nothing.safetensors", ErrorCode::kNotFound, {"nothing.safetensors"});
  ASSERT_TRUE(make_directories(dir.path() / "empty"));
  expect_refused("empty", ErrorCode::kNotFound, {"empty", ".safetensors"});
}

TEST_F(ActivationDocumentsTest, ATensorThatIsNoMatrixOfFloatsIsRefusedByName) {
  const std::vector<float> six(6, 1);
  write("name.safetensors", tensor_file("y", "F32", {2, 3}, six));
  expect_refused("name.safetensors", ErrorCode::kInvalidArgument,
                 {"name.safetensors", "no tensor \"x\""});
  write("rank1.safetensors", tensor_file("x", "F32", {6}, six));
  expect_refused("rank1.safetensors", ErrorCode::kInvalidArgument, {"rank1.safetensors", "[n, d]"});
  write("rank3.safetensors", tensor_file("x", "F32", {1, 2, 3}, six));
  expect_refused("rank3.safetensors", ErrorCode::kInvalidArgument, {"\"x\"", "[n, d]"});
  write("integers.safetensors", tensor_file("x", "I64", {1, 3}, std::vector<std::int64_t>(3, 1)));
  expect_refused("integers.safetensors", ErrorCode::kInvalidArgument, {"I64", "BF16"});
  write("rowless.safetensors", tensor_file("x", "F32", {0, 3}, std::vector<float>{}));
  expect_refused("rowless.safetensors", ErrorCode::kInvalidArgument, {"no rows"});
  write("flat.safetensors", tensor_file("x", "F32", {3, 0}, std::vector<float>{}));
  expect_refused("flat.safetensors", ErrorCode::kInvalidArgument, {"[n, d]"});
  write("mixed/a.safetensors", tensor_file("x", "F32", {2, 3}, six));
  write("mixed/b.safetensors", tensor_file("x", "F32", {3, 2}, six));
  expect_refused("mixed", ErrorCode::kInvalidArgument, {"b.safetensors", "width 2"});
}

TEST_F(ActivationDocumentsTest, FilesWithALyingHeaderAreCorrupted) {
  const std::string good = tensor_file("x", "F32", {2, 3}, std::vector<float>(6, 1));
  write("short.safetensors", good.substr(0, good.size() - 1));
  expect_refused("short.safetensors", ErrorCode::kCorrupted, {"short.safetensors"});
  write("empty.safetensors", "");
  expect_refused("empty.safetensors", ErrorCode::kCorrupted, {"empty.safetensors"});
  std::string more_rows = good;
  more_rows.replace(more_rows.find("[2,3]"), 5, "[9,3]");
  write("rows.safetensors", more_rows);
  expect_refused("rows.safetensors", ErrorCode::kCorrupted, {"rows.safetensors", "'x'"});
  std::string long_header = good;
  long_header[6] = '\x7f';
  write("header.safetensors", long_header);
  expect_refused("header.safetensors", ErrorCode::kCorrupted, {"header.safetensors"});
}

}  // namespace
}  // namespace saesweep::worker
