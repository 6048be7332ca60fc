# libfastalloc-malloc.so: malloc for programs that do not know of it. It exports malloc's names (on macOS: a table of them), those of
# C++'s operators, and fastalloc_malloc_stats; what it takes from the archive stays inside.
add_library(fa_global_objects OBJECT src/heap/global.c src/heap/global_hardened.c
            src/heap/global_large.c src/heap/global_stats.c)
target_include_directories(fa_global_objects PUBLIC include PRIVATE src)
target_link_libraries(fa_global_objects PRIVATE fa_shipped ${fa_threads})

add_library(fastalloc_malloc SHARED src/adapters/malloc.c $<TARGET_OBJECTS:fa_global_objects>)
target_include_directories(fastalloc_malloc PRIVATE include src)
target_link_libraries(fastalloc_malloc PRIVATE fastalloc_static fa_shipped ${fa_threads} ${CMAKE_DL_LIBS})
# The compiler must not know malloc while it compiles it; exceptions of new handlers pass through C.
target_compile_options(fastalloc_malloc PRIVATE -fno-builtin -fexceptions)
if(NOT APPLE)
  target_link_options(fastalloc_malloc PRIVATE -Wl,--exclude-libs,ALL -Wl,-z,noseparate-code -Wl,-z,now)
endif()
set_target_properties(fastalloc_malloc PROPERTIES OUTPUT_NAME fastalloc-malloc)
