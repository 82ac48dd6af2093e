// JSON: limits of what is read, and doubles that come back as they were.
#include "core/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <string>

#include "core/philox.h"

namespace saesweep {
namespace {

using testing::HasSubstr;

void expect_refused(std::string_view text, std::string_view because) {
  const auto parsed = parse_json(text);
  ASSERT_FALSE(parsed) << text;
  EXPECT_EQ(parsed.error().code, ErrorCode::kCorrupted);
  EXPECT_THAT(parsed.error().message, HasSubstr(because));
}

std::string nested(std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); }

TEST(JsonTest, ReadsWhatItWrites) {
  const Json value = {
      {"name", "π \"quoted\"\n"}, {"list", {1, -2, 3.5, nullptr, true}}, {"empty", Json::object()}};
  EXPECT_EQ(parse_json(canonical_json(value)).value(), value);
  EXPECT_EQ(parse_json(pretty_json(value)).value(), value);
}

TEST(JsonTest, TheCanonicalFormHasSortedKeysAndNoSpaces) {
  EXPECT_EQ(canonical_json(parse_json(R"( { "b" : 1, "a" : { "d" : 0.1, "c" : [ ] } } )").value()),
            R"({"a":{"c":[],"d":0.1},"b":1})");
}

TEST(JsonTest, ThePrettyFormHasAnIndentOfOneAndEndsTheLine) {
  EXPECT_EQ(pretty_json({{"a", {1}}}), "{\n \"a\": [\n  1\n ]\n}\n");
}

TEST(JsonTest, RefusesTextThatIsNotJson) {
  for (const std::string_view text :
       {"", " ", "{", "}", "[1,]", "{\"a\"}", "nul", "01", "1 2", "'a'", "\"\\x\"", "[1] // c",
        "NaN", "Infinity", "\"\xff\"", "\xef\xbb\xbf"})
    expect_refused(text, "");
}

TEST(JsonTest, RefusesANumberThatNoDoubleHolds) { expect_refused("1e999", "1e999"); }

TEST(JsonTest, RefusesAKeyThatIsRepeatedInOneObject) {
  expect_refused(R"({"a": 1, "b": 2, "a": 3})", "repeats the key \"a\"");
  expect_refused(R"({"x": [{"a": 1, "\u0061": 3}]})", "repeats the key \"a\"");
}

TEST(JsonTest, TheSameKeyInTwoObjectsIsFine) {
  EXPECT_TRUE(parse_json(R"({"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]})"));
}

TEST(JsonTest, DepthIsLimitedToTheNumberGiven) {
  EXPECT_TRUE(parse_json(nested(64)));
  expect_refused(nested(65), "deeper than 64");
  EXPECT_TRUE(parse_json(nested(3), 3));
  EXPECT_FALSE(parse_json(nested(4), 3));
  expect_refused(std::string(1000000, '['), "deeper than 64");
}

TEST(JsonTest, BracketsInsideStringsAreNotDepth) {
  EXPECT_TRUE(parse_json('"' + std::string(1000, '[') + '"'));
  EXPECT_TRUE(parse_json(R"(["\"[[[[\\", "]"])", 1));
}

TEST(JsonTest, LengthIsLimitedToTheNumberGiven) {
  EXPECT_TRUE(parse_json("[1, 2]", 64, 6));
  EXPECT_FALSE(parse_json("[1, 2] ", 64, 6));
}

TEST(JsonTest, EveryFiniteDoubleComesBackTheSame) {
  Rng rng(1, "json");
  std::vector<double> values = {0.0,
                                -0.0,
                                0.1,
                                1.0 / 3,
                                5e-324,
                                2.2250738585072011e-308,
                                std::numeric_limits<double>::max(),
                                std::numeric_limits<double>::denorm_min(),
                                9007199254740993.0,
                                1e22,
                                1e23};
  while (values.size() < 20000) {
    const double value = std::bit_cast<double>(rng.next_u64());
    if (std::isfinite(value)) values.push_back(value);
  }
  for (const double value : values) {
    const auto back = parse_json(canonical_json(Json(value)));
    ASSERT_TRUE(back);
    ASSERT_EQ(std::bit_cast<std::uint64_t>(back->get<double>()),
              std::bit_cast<std::uint64_t>(value))
        << canonical_json(Json(value));
  }
}

TEST(JsonTest, WholeNumbersOf64BitsComeBackTheSame) {
  for (const std::uint64_t value :
       {std::uint64_t{0}, std::uint64_t{9007199254740993}, ~std::uint64_t{0}})
    EXPECT_EQ(parse_json(canonical_json(Json(value))).value().get<std::uint64_t>(), value);
  const std::int64_t least = std::numeric_limits<std::int64_t>::min();
  EXPECT_EQ(parse_json(canonical_json(Json(least))).value().get<std::int64_t>(), least);
}

TEST(JsonTest, WhatIsNotFiniteIsWrittenAsNull) {
  EXPECT_EQ(canonical_json({std::numeric_limits<double>::quiet_NaN(),
                            std::numeric_limits<double>::infinity()}),
            "[null,null]");
}

TEST(JsonTest, BytesThatAreNotUtf8AreReplacedAndNeverThrow) {
  EXPECT_EQ(canonical_json(Json("a\xff")), "\"a\xef\xbf\xbd\"");
}

}  // namespace
}  // namespace saesweep
