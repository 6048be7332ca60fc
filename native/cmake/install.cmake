# cmake --install: headers, both libraries, pkg-config file, CMake package. All of it can be moved after installation.
install(FILES include/fastalloc.h include/fastalloc32.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS ${libraries} EXPORT fastalloc
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
        RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
fa_strip_installed(${CMAKE_INSTALL_LIBDIR})

if(TARGET fastalloc_malloc)
  install(TARGETS fastalloc_malloc LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/fastalloc)
install(EXPORT fastalloc NAMESPACE fastalloc:: FILE fastallocTargets.cmake DESTINATION ${package_dir})
configure_package_config_file(cmake/fastallocConfig.cmake.in fastallocConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(fastallocConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/fastallocConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/fastallocConfigVersion.cmake
        DESTINATION ${package_dir})

# The prefix as seen from lib/pkgconfig, so that the tree can be moved; not where its places are absolute paths.
set(pkgconfig_dir ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
  set(pkgconfig_prefix "${CMAKE_INSTALL_PREFIX}")
else()
  file(RELATIVE_PATH pkgconfig_prefix "/prefix/${pkgconfig_dir}" "/prefix")
  string(REGEX REPLACE "/$" "" pkgconfig_prefix "\${pcfiledir}/${pkgconfig_prefix}")
endif()
foreach(place IN ITEMS INCLUDEDIR LIBDIR)
  set(pkgconfig_${place} "${CMAKE_INSTALL_${place}}")
  if(NOT IS_ABSOLUTE "${CMAKE_INSTALL_${place}}")
    set(pkgconfig_${place} "\${prefix}/${CMAKE_INSTALL_${place}}")
  endif()
endforeach()
configure_file(cmake/fastalloc.pc.in fastalloc.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/fastalloc.pc DESTINATION ${pkgconfig_dir})
