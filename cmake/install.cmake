# make install: the program, the shipped model, and the engine as a library (headers keep their folders).
install(TARGETS btcchat RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS btc_engine btc_ops btc_kernels_cpu btc_base ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES engine/engine.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/btcchat/engine)
install(FILES base/base.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/btcchat/base)
install(DIRECTORY models/nano DESTINATION ${CMAKE_INSTALL_DATADIR}/btcchat/models)
