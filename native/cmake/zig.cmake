# A toolchain for every target of `make cross`: clang, its C libraries and its linkers from one wheel, ziglang of PyPI.
#
#     cmake -S native -B build/cross/TARGET -DCMAKE_TOOLCHAIN_FILE=cmake/zig.cmake -DFA_ZIG=.../ziglang/zig -DFA_TARGET=TARGET
#
# FA_TARGET is zig's triple: aarch64-linux-musl, wasm32-wasi, x86_64-windows-gnu, ... tests/cross.py lists what is built.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES FA_ZIG FA_TARGET)
string(REPLACE "-" ";" parts "${FA_TARGET}")
list(GET parts 0 CMAKE_SYSTEM_PROCESSOR)
list(GET parts 1 system)
set(CMAKE_SYSTEM_NAME_linux Linux)
set(CMAKE_SYSTEM_NAME_windows Windows)
set(CMAKE_SYSTEM_NAME_macos Darwin)
set(CMAKE_SYSTEM_NAME_wasi WASI)
set(CMAKE_SYSTEM_NAME ${CMAKE_SYSTEM_NAME_${system}})
set(CMAKE_SYSTEM_VERSION 1)

if(NOT CMAKE_C_COMPILER_ID) # the first time
  set(CMAKE_C_COMPILER "${FA_ZIG}" cc -target ${FA_TARGET})
endif()
# One program is all tools: the rules of archives say so. CMake reads this file again after its own for the platform, which
# has its own rules for some.
set(CMAKE_USER_MAKE_RULES_OVERRIDE_C "${CMAKE_CURRENT_LIST_FILE}")
set(CMAKE_AR "${FA_ZIG}" CACHE FILEPATH "")
set(CMAKE_RANLIB "${FA_ZIG}" CACHE FILEPATH "")
set(CMAKE_C_ARCHIVE_CREATE "<CMAKE_AR> ar qc <TARGET> <OBJECTS>")
set(CMAKE_C_ARCHIVE_APPEND "<CMAKE_AR> ar q <TARGET> <OBJECTS>")
set(CMAKE_C_ARCHIVE_FINISH "<CMAKE_RANLIB> ranlib <TARGET>")
# zig has its own copies of what these would find.
set(CMAKE_OSX_SYSROOT "" CACHE STRING "")
set(CMAKE_INSTALL_NAME_TOOL "${CMAKE_COMMAND}" CACHE FILEPATH "")

# Nothing of the machine that builds is for the target.
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
