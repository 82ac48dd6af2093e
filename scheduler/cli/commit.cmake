# cmake -DSOURCE=... -DOUTPUT=... -P commit.cmake: writes the checked-out commit as a header, and
# touches it only if it changed, so that one small file is compiled anew after a commit.
set(ENV{GIT_OPTIONAL_LOCKS} 0)
execute_process(
  COMMAND git -C ${SOURCE} describe --always --abbrev=12 --exclude=* --dirty
  OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
if(failed OR commit STREQUAL "")
  set(commit unknown)
endif()
set(text "// Made by the build.\n#pragma once\n\n#define SAESWEEP_COMMIT \"${commit}\"\n")
set(present "")
if(EXISTS ${OUTPUT})
  file(READ ${OUTPUT} present)
endif()
if(NOT present STREQUAL text)
  file(WRITE ${OUTPUT} "${text}")
endif()
