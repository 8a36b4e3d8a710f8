#include "base/json_text.h"

#include <gtest/gtest.h>

namespace refrain {
namespace {

TEST(JsonText, Escapes) {
  EXPECT_EQ(json_string(""), R"("")");
  EXPECT_EQ(json_string("aten::mm"), R"("aten::mm")");
  EXPECT_EQ(json_string("a\"b\\c\n\x01"), R"("a\"b\\c\u000a\u0001")");
}

TEST(JsonText, KeepsUtf8AndReplacesTheRest) {
  EXPECT_EQ(json_string("\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"), "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"");
  EXPECT_EQ(json_string("\xff\xc3"), R"("??")");
  EXPECT_EQ(json_string("\xc0\x80"), R"("??")");            // overlong
  EXPECT_EQ(json_string("\xed\xa0\x80"), R"("???")");       // half a surrogate pair
  EXPECT_EQ(json_string("\xf4\x90\x80\x80"), R"("????")");  // beyond Unicode
  EXPECT_EQ(json_string("\xe2\x82 x"), R"("?? x")");
}

}  // namespace
}  // namespace refrain
