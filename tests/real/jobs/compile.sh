# A small project is compiled, linked, run, changed and compiled again.
mkdir -p /root/project/include /root/project/src
cd /root/project
for n in $(seq 1 40); do
    printf 'int part%s(void);\n' "$n" >>include/parts.h
    printf '#include "parts.h"\n#include <stdio.h>\nint part%s(void) { return %s; }\n' "$n" "$n" >"src/part$n.c"
done
{
    printf '#include <stdio.h>\n#include "parts.h"\nint main(void) { int sum = 0;\n'
    for n in $(seq 1 40); do printf 'sum += part%s();\n' "$n"; done
    printf 'printf("%%d\\n", sum); return 0; }\n'
} >src/main.c
printf 'OBJECTS := $(patsubst src/%%.c,build/%%.o,$(filter-out src/main.c,$(wildcard src/*.c)))\n' >Makefile
cat >>Makefile <<'END'
CFLAGS := -O1 -g -Iinclude -MMD
sum: build/main.o build/libparts.a
	$(CC) -o $@ $^
build/libparts.a: $(OBJECTS)
	rm -f $@
	$(AR) rcsD $@ $(sort $^)
build/%.o: src/%.c | build
	$(CC) $(CFLAGS) -c -o $@ $<
build:
	mkdir $@
clean:
	rm -rf build sum
-include $(wildcard build/*.d)
END
make -s -j2
must_be "$(./sum)" 820
sed -i 's/return 40;/return 1040;/' src/part40.c
make -s
must_be "$(./sum)" 1820
make -s clean
make -s -j2
must_be "$(./sum)" 1820
must_be "$(make -q && echo done)" "done"
