#include "sweeps/yaml_document.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <string>

namespace saesweep::sweeps {
namespace {

using testing::HasSubstr;

YamlProblem problem(const std::string& text) {
  auto result = parse_yaml(text);
  if (result) {
    ADD_FAILURE() << "was read: " << text.substr(0, 100);
    return {};
  }
  return result.error();
}

bool same(const YamlNode& a, const YamlNode& b) {
  if (a.kind != b.kind || a.text != b.text || a.items.size() != b.items.size() ||
      a.keys.size() != b.keys.size())
    return false;
  for (std::size_t i = 0; i < a.items.size(); ++i)
    if ((a.is_map() && a.keys[i].text != b.keys[i].text) || !same(a.items[i], b.items[i]))
      return false;
  return true;
}

TEST(YamlDocumentTest, NodesKnowWhereTheyStand) {
  const auto root = parse_yaml("a: 1\nb:\n  - x\n  - {c: [2, 3]}\n");
  ASSERT_TRUE(root);
  const YamlNode* list = root->find("b");
  ASSERT_NE(list, nullptr);
  EXPECT_EQ(list->items[0].line, 3);
  EXPECT_EQ(list->items[0].column, 5);
  EXPECT_EQ(list->items[1].keys[0].column, 6);
  EXPECT_EQ(list->items[1].items[0].items[1].text, "3");
  EXPECT_EQ(list->items[1].items[0].items[1].column, 13);
  EXPECT_EQ(root->find("c"), nullptr);
}

TEST(YamlDocumentTest, ScalarsStayText) {
  const auto root = parse_yaml("[0x10, 1e3, yes, null, ~, '', \"a\\nb\", 200k]");
  ASSERT_TRUE(root);
  EXPECT_EQ(root->items[0].text, "0x10");
  EXPECT_EQ(root->items[1].text, "1e3");
  EXPECT_EQ(root->items[2].text, "yes");
  EXPECT_TRUE(root->items[3].is_null());
  EXPECT_TRUE(root->items[4].is_null());
  EXPECT_TRUE(root->items[5].is_scalar());
  EXPECT_EQ(root->items[6].text, "a\nb");
}

TEST(YamlDocumentTest, AliasesAreExpanded) {
  const auto root = parse_yaml("a: &x {k: 1}\nb: [*x, *x]\n");
  ASSERT_TRUE(root);
  EXPECT_EQ(root->find("b")->items[1].find("k")->text, "1");
}

TEST(YamlDocumentTest, AnAliasBombIsRefusedBeforeItGoesOff) {
  std::string bomb = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n";
  for (int i = 1; i < 20; ++i)
    bomb += fmt::format("a{0}: &a{0} [*a{1}, *a{1}, *a{1}, *a{1}, *a{1}, *a{1}, *a{1}, *a{1}]\n", i,
                        i - 1);
  EXPECT_THAT(problem(bomb).message, HasSubstr("with its aliases expanded"));
}

TEST(YamlDocumentTest, ABombOfLongTextIsRefusedToo) {
  std::string bomb = "a: &a " + std::string(100'000, 'x') + "\nb: [";
  for (int i = 0; i < 200; ++i) bomb += "*a, ";
  EXPECT_THAT(problem(bomb + "*a]\n").message, HasSubstr("MiB of text"));
}

TEST(YamlDocumentTest, AnAliasInsideItsOwnAnchorIsRefused) {
  EXPECT_FALSE(parse_yaml("a: &a [1, *a]"));
}

TEST(YamlDocumentTest, DeepNestingIsRefused) {
  for (const int depth : {33, 1000, 100'000}) {
    SCOPED_TRACE(depth);
    EXPECT_FALSE(parse_yaml(std::string(static_cast<std::size_t>(depth), '[')));
  }
  EXPECT_THAT(problem(std::string(40, '[') + std::string(40, ']')).message,
              HasSubstr("nested deeper than 32"));
  EXPECT_TRUE(parse_yaml(std::string(32, '[') + std::string(32, ']')));
}

TEST(YamlDocumentTest, NestingThroughAliasesCounts) {
  std::string text = "a0: &a0 [[[[[[[[1]]]]]]]]\n";
  for (int i = 1; i < 6; ++i) text += fmt::format("a{}: &a{} [[[[[[[*a{}]]]]]]]\n", i, i, i - 1);
  EXPECT_THAT(problem(text).message, HasSubstr("nested deeper"));
}

TEST(YamlDocumentTest, BytesThatAreNoTextAreRefusedWithTheirPlace) {
  const YamlProblem zero = problem(std::string("a: 1\nb: \0", 9));
  EXPECT_EQ(zero.line, 2);
  EXPECT_EQ(zero.column, 4);
  EXPECT_THAT(zero.message, HasSubstr("byte 0x00"));
  EXPECT_THAT(problem("a: \xff\xfe").message, HasSubstr("byte 0xff"));
  EXPECT_THAT(problem("a: \xc3").message, HasSubstr("byte 0xc3"));
  EXPECT_TRUE(parse_yaml("a: \xc3\xa9 # caf\xc3\xa9\n"));
}

TEST(YamlDocumentTest, EmptyAndDoubledDocumentsAreRefused) {
  EXPECT_THAT(problem("").message, HasSubstr("is empty"));
  EXPECT_THAT(problem("# only a comment\n").message, HasSubstr("is empty"));
  EXPECT_THAT(problem("a: 1\n---\nb: 2\n").message, HasSubstr("more than one document"));
  EXPECT_THAT(problem(std::string(kMaxYamlBytes + 1, ' ')).message, HasSubstr("at most 1048576"));
}

TEST(YamlDocumentTest, BadSyntaxIsRefusedWithItsLine) {
  const YamlProblem bad = problem("a: 1\nb: [1, 2\nc: 3\n");
  EXPECT_GT(bad.line, 1);
  EXPECT_THAT(bad.message, HasSubstr("is not valid YAML"));
  EXPECT_THAT(problem("? [a, b]\n: 1\n").message, HasSubstr("a key is a list or a map"));
}

TEST(YamlDocumentTest, WhatIsEmittedReadsBackEqual) {
  for (const char* text :
       {"a: 1\nb: {c: [1, {d: 2}], e: []}\nf:\n  - {g: h, i: [j, k]}\n  - x\n",
        "[1, [2, [3]], {a: b}]", "plain", "a: 'it''s: a # \"test\"'\nb: \"tab\\tline\\n\"\n",
        "a: ''\nb: 'null'\nc: ~\nd: '- x'\ne: '%x'\nf: '[x'\n", "{}", "a: {b: {c: {d: {e: 1}}}}",
        "- - 1\n  - 2\n- {a: [{b: {c: []}}]}\n", "key with space: 'v'\n'k:': 5%\n"}) {
    SCOPED_TRACE(text);
    const auto first = parse_yaml(text);
    ASSERT_TRUE(first) << first.error().message;
    const std::string emitted = emit_yaml(*first);
    const auto second = parse_yaml(emitted);
    ASSERT_TRUE(second) << second.error().message << "\n" << emitted;
    EXPECT_TRUE(same(*first, *second)) << emitted;
    EXPECT_EQ(emit_yaml(*second), emitted);
  }
}

}  // namespace
}  // namespace saesweep::sweeps
