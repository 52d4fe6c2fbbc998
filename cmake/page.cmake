# The gallery's page (report/page) and Leaflet as byte arrays, so that the program is one file: build/page/page_files.h.
find_path(BTC_LEAFLET leaflet.min.js PATHS /usr/share/javascript/leaflet NO_DEFAULT_PATH)
set(page_names index.html gallery.css store.js labels.js list.js viewer.js map.js main.js)
list(TRANSFORM page_names PREPEND ${CMAKE_SOURCE_DIR}/report/page/ OUTPUT_VARIABLE page_sources)
if(BTC_LEAFLET)
  list(APPEND page_names leaflet.js leaflet.css leaflet-license.txt)
  list(APPEND page_sources ${BTC_LEAFLET}/leaflet.min.js ${BTC_LEAFLET}/leaflet.css ${CMAKE_SOURCE_DIR}/report/page/leaflet-license.txt)
else()
  message(STATUS "Galleries without a map: it needs libjs-leaflet")
endif()
set(page_headers "")
set(page_includes "")
set(page_rows "")
foreach(name source IN ZIP_LISTS page_names page_sources)
  string(MAKE_C_IDENTIFIER "page_${name}" id)
  add_custom_command(
    OUTPUT ${CMAKE_BINARY_DIR}/page/${id}.h
    COMMAND ${CMAKE_COMMAND} -DIN=${source} -DOUT=${CMAKE_BINARY_DIR}/page/${id}.h -DNAME=${id} -P ${CMAKE_SOURCE_DIR}/cmake/embed.cmake
    DEPENDS ${source} ${CMAKE_SOURCE_DIR}/cmake/embed.cmake VERBATIM)
  list(APPEND page_headers ${CMAKE_BINARY_DIR}/page/${id}.h)
  string(APPEND page_includes "#include \"${id}.h\"\n")
  string(APPEND page_rows "  {\"${name}\", ${id}, sizeof ${id} - 1},\n")
endforeach()
file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/page/page_files.h @ONLY CONTENT
"@page_includes@static const struct page_file {
  const char *name, *data;
  size_t len;
} page_files[] = {
@page_rows@};
")
