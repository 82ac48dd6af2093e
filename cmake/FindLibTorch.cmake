# LibTorch out of the `torch` wheel (>= 2.6), without the CUDA toolkit that the wheel's own
# find_package(Torch) asks for.
#
#   LIBTORCH_ROOT     folder with include/ and lib/; default: .deps/torch of this checkout
#   LibTorch::torch   torch_cpu and c10; its headers come after the system's, because the wheel
#                     carries old copies of protobuf and fmt
set(LIBTORCH_ROOT "${CMAKE_SOURCE_DIR}/.deps/torch" CACHE PATH "LibTorch: a folder with include/ and lib/")

find_library(LIBTORCH_CPU_LIBRARY torch_cpu PATHS ${LIBTORCH_ROOT}/lib NO_DEFAULT_PATH)
find_library(LIBTORCH_C10_LIBRARY c10 PATHS ${LIBTORCH_ROOT}/lib NO_DEFAULT_PATH)
find_path(LIBTORCH_INCLUDE_DIR ATen/ATen.h PATHS ${LIBTORCH_ROOT}/include NO_DEFAULT_PATH)

if(LIBTORCH_INCLUDE_DIR)
  file(STRINGS ${LIBTORCH_INCLUDE_DIR}/torch/headeronly/version.h _version_lines
       REGEX "#define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
  if(NOT _version_lines)
    file(STRINGS ${LIBTORCH_INCLUDE_DIR}/torch/csrc/api/include/torch/version.h _version_lines
         REGEX "#define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
  endif()
  string(REGEX REPLACE "[^0-9;]+" "" _version "${_version_lines}")
  string(REPLACE ";" "." LIBTORCH_VERSION "${_version}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch
  REQUIRED_VARS LIBTORCH_CPU_LIBRARY LIBTORCH_C10_LIBRARY LIBTORCH_INCLUDE_DIR
  VERSION_VAR LIBTORCH_VERSION
  REASON_FAILURE_MESSAGE
  "run deploy/setup.sh, or give -DLIBTORCH_ROOT=<folder of a torch wheel or libtorch>, or configure with -DSAESWEEP_WITH_TORCH=OFF")

if(LibTorch_FOUND AND NOT TARGET LibTorch::torch)
  # The string ABI of Debian's packages is the new one; an old-ABI LibTorch cannot link with them.
  execute_process(COMMAND sh -c "nm -D --defined-only '${LIBTORCH_C10_LIBRARY}' | grep -c __cxx11"
                  OUTPUT_VARIABLE _cxx11_symbols OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(_cxx11_symbols STREQUAL "0")
    message(FATAL_ERROR "${LIBTORCH_ROOT} was built with _GLIBCXX_USE_CXX11_ABI=0; a LibTorch >= 2.6 wheel is needed")
  endif()

  get_filename_component(_torch_lib ${LIBTORCH_CPU_LIBRARY} DIRECTORY)
  get_filename_component(_site ${LIBTORCH_ROOT} DIRECTORY)
  # GLOBAL: tests lie beside worker/, not under it.
  add_library(LibTorch::torch INTERFACE IMPORTED GLOBAL)
  # -idirafter as one joined option per folder: CMake would de-duplicate a bare "-idirafter".
  target_compile_options(LibTorch::torch INTERFACE
    "SHELL:-idirafter ${LIBTORCH_INCLUDE_DIR}"
    "SHELL:-idirafter ${LIBTORCH_INCLUDE_DIR}/torch/csrc/api/include")
  target_link_libraries(LibTorch::torch INTERFACE ${LIBTORCH_CPU_LIBRARY} ${LIBTORCH_C10_LIBRARY})
  target_link_options(LibTorch::torch INTERFACE
    -Wl,--allow-shlib-undefined
    "-Wl,-rpath,${_torch_lib}" "-Wl,-rpath,${_site}/nvidia/cu13/lib")
endif()
mark_as_advanced(LIBTORCH_CPU_LIBRARY LIBTORCH_C10_LIBRARY LIBTORCH_INCLUDE_DIR)
