# fa_flags: what our own code is compiled with, through fa_shipped or fa_checked. Never exported: users have their own flags.
add_library(fa_flags INTERFACE)

function(fa_flag_if_supported flag)
  string(MAKE_C_IDENTIFIER "FA_HAS${flag}" known)
  set(CMAKE_REQUIRED_FLAGS -Werror) # clang only warns of a flag that its target does not have
  check_c_compiler_flag("${flag}" ${known})
  if(${known})
    target_compile_options(fa_flags INTERFACE "$<$<COMPILE_LANGUAGE:C>:${flag}>")
  endif()
endfunction()

# Calls inside the library are direct: nothing is interposed, nothing goes through a PLT. What 32-bit gcc tells of its ABI is about
# atomic fields and vectors in calls, of which no public function has any.
set(CMAKE_C_VISIBILITY_PRESET hidden)
foreach(flag IN ITEMS -fno-semantic-interposition -fno-plt -Werror=implicit-function-declaration -Wno-psabi)
  fa_flag_if_supported(${flag})
endforeach()

# Link-time optimisation with gcc, for what users get: libraries, extension, and what is measured. Fat objects also link where it
# is not used, as in the tests, of which each would compile the library anew. CMake's own switch makes objects that only
# the same compiler can read; fa_strip_installed takes out what is so of ours.
add_library(fa_shipped INTERFACE)
target_link_libraries(fa_shipped INTERFACE fa_flags)
add_library(fa_checked INTERFACE)
target_link_libraries(fa_checked INTERFACE fa_flags)
if(CMAKE_C_COMPILER_ID STREQUAL "GNU" AND CMAKE_BUILD_TYPE STREQUAL "Release" AND CMAKE_OBJCOPY
   AND NOT FA_SANITIZE AND NOT FA_ANALYZE)
  check_c_compiler_flag("-flto=auto" FA_HAS_LTO) # gcc 10 and later
  if(FA_HAS_LTO)
    target_compile_options(fa_shipped INTERFACE $<$<COMPILE_LANGUAGE:C>:-flto=auto> $<$<COMPILE_LANGUAGE:C>:-ffat-lto-objects>)
    target_link_options(fa_shipped INTERFACE -flto=auto)
    target_link_options(fa_checked INTERFACE -fno-lto)
  endif()
endif()

# The archive that is installed has machine code only: any other version of gcc would stop at the bytecode, even where nobody
# asks for it.
function(fa_strip_installed directory)
  if(FA_HAS_LTO)
    install(CODE "
      get_filename_component(directory [[${directory}]] ABSOLUTE BASE_DIR \"\${CMAKE_INSTALL_PREFIX}\")
      execute_process(COMMAND [[${CMAKE_OBJCOPY}]] --wildcard --remove-section=.gnu.lto_* --remove-section=.gnu.debuglto_*
                              \"\$ENV{DESTDIR}\${directory}/libfastalloc.a\" RESULT_VARIABLE failed)
      if(failed)
        message(FATAL_ERROR [[objcopy: ]] \${failed})
      endif()")
  endif()
endfunction()

if(FA_DEBUG)
  target_compile_definitions(fa_flags INTERFACE FA_DEBUG=1)
endif()

if(FA_STRICT)
  set(warnings
      -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes
      -Wold-style-definition -Wvla -Wundef -Wcast-align -Wpointer-arith -Wwrite-strings -Wformat=2 -Wdouble-promotion
      -Wimplicit-fallthrough -Wnested-externs)
  if(CMAKE_C_COMPILER_ID STREQUAL "GNU")
    list(APPEND warnings -Wlogical-op -Wduplicated-cond -Wduplicated-branches -Walloca)
  endif()
  foreach(flag IN LISTS warnings)
    target_compile_options(fa_flags INTERFACE "$<$<COMPILE_LANGUAGE:C>:${flag}>")
  endforeach()
  target_compile_options(fa_flags INTERFACE -Werror)
endif()

if(FA_ANALYZE)
  target_compile_options(fa_flags INTERFACE -fanalyzer)
endif()

if(FA_SANITIZE STREQUAL "address")
  set(sanitize -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
elseif(FA_SANITIZE STREQUAL "thread")
  set(sanitize -fsanitize=thread -fno-omit-frame-pointer)
elseif(NOT FA_SANITIZE STREQUAL "")
  message(FATAL_ERROR "FA_SANITIZE is '${FA_SANITIZE}': it may be empty, address or thread")
endif()
if(FA_COVERAGE)
  target_compile_options(fa_flags INTERFACE --coverage -fprofile-update=atomic)
  target_compile_definitions(fa_flags INTERFACE FA_COVERAGE)
  target_link_options(fa_flags INTERFACE --coverage)
endif()
# Every branch is seen by libFuzzer, in the library too.
if(FA_FUZZ)
  target_compile_options(fa_flags INTERFACE -fsanitize=fuzzer-no-link)
  target_link_options(fa_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()
if(FA_SANITIZE)
  target_compile_options(fa_flags INTERFACE ${sanitize} -g -O1)
  target_link_options(fa_flags INTERFACE ${sanitize})
endif()