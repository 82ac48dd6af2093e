# cmake -DDIRECTORY=... -DFILES=a;b -DOUTPUT=x.cpp -P embed.cmake
#
# Writes a C++ source with the bytes of each file as string literals of escapes, which no content can
# end early. Needs nothing but CMake.
set(text "// Written by scheduler/web/embed.cmake.\n#include \"scheduler/web/embedded_files.h\"\n\nnamespace saesweep::scheduler {\n\nstd::string_view embedded_file(std::string_view name) {\n")
file(WRITE ${OUTPUT}.tmp "${text}")
foreach(name IN LISTS FILES)
  file(READ ${DIRECTORY}/${name} hex HEX)
  string(LENGTH "${hex}" digits)
  math(EXPR bytes "${digits} / 2")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "\\\\x\\1" escaped "${hex}")
  # 2000 bytes (8000 characters) a line; neighbouring literals are joined by the compiler.
  string(LENGTH "${escaped}" length)
  set(position 0)
  file(APPEND ${OUTPUT}.tmp "  if (name == \"${name}\")\n    return std::string_view(\n")
  while(position LESS length)
    string(SUBSTRING "${escaped}" ${position} 8000 piece)
    file(APPEND ${OUTPUT}.tmp "        \"${piece}\"\n")
    math(EXPR position "${position} + 8000")
  endwhile()
  file(APPEND ${OUTPUT}.tmp "        \"\", ${bytes});\n")
endforeach()
file(APPEND ${OUTPUT}.tmp "  return {};\n}\n\n}  // namespace saesweep::scheduler\n")
file(RENAME ${OUTPUT}.tmp ${OUTPUT})
