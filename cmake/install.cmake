# make install: the program, the engine as one shared library with its headers, the shipped model.
# Only what the public headers declare leaves the library (libbtcchat.map), and it needs no other -l than -lbtcchat.
file(WRITE ${CMAKE_BINARY_DIR}/libbtcchat.c "extern int btcchat_is_its_archives;\n") # a library needs a source of its own
add_library(btcchat_shared SHARED ${CMAKE_BINARY_DIR}/libbtcchat.c)
set_target_properties(btcchat_shared PROPERTIES OUTPUT_NAME btcchat LINKER_LANGUAGE CXX VERSION ${PROJECT_VERSION} SOVERSION 0)
target_link_libraries(btcchat_shared PRIVATE "$<LINK_LIBRARY:WHOLE_ARCHIVE,btc_engine>")
target_link_options(btcchat_shared PRIVATE "LINKER:-u,btc_status_text" "LINKER:--version-script=${CMAKE_SOURCE_DIR}/cmake/libbtcchat.map")
set_property(TARGET btcchat_shared PROPERTY LINK_DEPENDS ${CMAKE_SOURCE_DIR}/cmake/libbtcchat.map)

configure_file(cmake/btcchat.pc.in btcchat.pc @ONLY)
install(TARGETS btcchat RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
if(BTC_GEO)
  install(TARGETS btcchat-geo RUNTIME DESTINATION libexec/btcchat) # geo/geo.c looks there
endif()
install(TARGETS btcchat_shared LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES engine/engine.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/btcchat/engine)
install(FILES base/base.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/btcchat/base)
install(FILES ${CMAKE_BINARY_DIR}/btcchat.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(DIRECTORY models/nano DESTINATION ${CMAKE_INSTALL_DATADIR}/btcchat/models)
install(FILES LICENSE README.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
