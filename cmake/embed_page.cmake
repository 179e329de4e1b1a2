# Makes a C++ source of a page: cmake -DHTML=.. -DSTYLE=.. -DSCRIPT=.. -DNAME=.. -DOUT=.. -P this.
cmake_minimum_required(VERSION 3.25)  # or @NAME@ would be read as a variable
file(READ ${HTML} page)
file(READ ${STYLE} style)
file(READ ${SCRIPT} script)
string(REPLACE "@STYLE@" "${style}" page "${page}")
string(REPLACE "@SCRIPT@" "${script}" page "${page}")
file(WRITE ${OUT} "// Made from ${NAME}.html by cmake/embed_page.cmake.\n"
  "#include \"server/web_page.h\"\n\nnamespace nibble {\n\n"
  "const std::string_view ${NAME} = R\"~~page~~(${page})~~page~~\";\n\n}  // namespace nibble\n")
