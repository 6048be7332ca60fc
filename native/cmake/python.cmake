# pip install: the cffi module with the C types of src/adapters, linked with the archive, and what a C user of the
# installed package needs. scikit-build-core sets SKBUILD and installs from here into the wheel.
find_package(Python 3.11 REQUIRED COMPONENTS Interpreter)
execute_process(COMMAND "${Python_EXECUTABLE}" -c "import sysconfig; print(sysconfig.get_config_var('Py_GIL_DISABLED') or 0)"
                OUTPUT_VARIABLE without_gil OUTPUT_STRIP_TRAILING_WHITESPACE)
if(without_gil)
  message(FATAL_ERROR "fastalloc needs a CPython with the GIL, and ${Python_EXECUTABLE} is a free-threaded build: the hooks in "
                      "NumPy and the counts of what uses a block rely on it, and the module is built for the stable ABI, "
                      "which free-threaded builds do not have.")
endif()
# On Windows a module names the library that it takes Python from: the one of the stable ABI, not that of a version.
if(WIN32)
  find_package(Python 3.11 REQUIRED COMPONENTS Interpreter Development.SABIModule) # CMake 3.26
  set(stable_abi USE_SABI 3.11)
else()
  find_package(Python 3.11 REQUIRED COMPONENTS Interpreter Development.Module)
endif()
set(root ${CMAKE_CURRENT_SOURCE_DIR}/..)

# build_ffi.py reads its definitions from the preprocessed public header.
set(native_c ${CMAKE_CURRENT_BINARY_DIR}/_native.c)
add_custom_command(
  OUTPUT ${native_c}
  COMMAND ${CMAKE_COMMAND} -E env "CC=${CMAKE_C_COMPILER}"
          ${Python_EXECUTABLE} -m cffi.gen_src exec-python ${root}/build_ffi.py ${native_c}
  DEPENDS ${root}/build_ffi.py include/fastalloc.h src/heap/arena.h src/heap/array_heap.h src/heap/manager.h
  VERBATIM)

python_add_library(_native MODULE ${stable_abi} ${native_c} src/adapters/arrays.c src/adapters/install.c src/adapters/numpy.c
                   src/adapters/python.c src/adapters/python_block.c src/adapters/python_heap.c src/adapters/residue.c
                   src/adapters/wipe_objects.c)
target_compile_definitions(_native PRIVATE Py_LIMITED_API=0x030B0000)
target_include_directories(_native PRIVATE src)
target_link_libraries(_native PRIVATE fastalloc_static fa_shipped)
# cffi's generated code is not written to our warnings.
set_source_files_properties(${native_c} PROPERTIES COMPILE_OPTIONS "-w")
set_target_properties(_native PROPERTIES PREFIX "" OUTPUT_NAME _native SUFFIX .abi3.so)
if(WIN32)
  set_target_properties(_native PROPERTIES SUFFIX .pyd)
endif()

# Only PyInit__native is exported: what the module takes from the archive stays inside, called without a PLT.
if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  target_link_options(_native PRIVATE -Wl,--exclude-libs,ALL)
endif()

install(TARGETS _native DESTINATION fastalloc)
if(TARGET fastalloc_malloc)
  install(TARGETS fastalloc_malloc LIBRARY DESTINATION fastalloc)
endif()
# A wheel holds no symbolic links: two names for the shared library, not three copies.
set_target_properties(fastalloc_shared PROPERTIES VERSION ${PROJECT_VERSION_MAJOR})
install(TARGETS ${libraries} ARCHIVE DESTINATION fastalloc/lib LIBRARY DESTINATION fastalloc/lib)
fa_strip_installed(fastalloc/lib)
install(FILES include/fastalloc.h include/fastalloc32.h DESTINATION fastalloc/include)
install(FILES ${root}/examples/stark.py DESTINATION fastalloc/examples)
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/__init__.py "\"\"\"Programs of the examples/ directory, importable.\"\"\"\n")
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/__init__.py DESTINATION fastalloc/examples)
