/* A card with everything that lspci shows, PCI Express or conventional. It does nothing. */
#include <stdio.h>
#include <string.h>
#include <viaduct.h>

int main(int count, char **words)
{
    /* A vendor's capability: its length, then five bytes of which a driver may change the last. */
    static const uint8_t body[] = { 8, 1, 2, 3, 4, 5 }, writable[] = { 0, 0, 0, 0, 0, 0xff };
    /* A vendor's extended capability (id 0x0b): its own id 0x5c, revision 1, 12 bytes. */
    static const uint8_t extended[] = { 0x5c, 0x00, 0xc1, 0x00, 1, 2, 3, 4 };
    static const struct viaduct_handlers handlers = { 0 };
    int conventional = count > 1 && !strcmp(words[1], "conventional");
    viaduct_device *dev = viaduct_new("showcase", 0x1234, 0x5c0e);
    viaduct_set_class(dev, 0x118000, 7);
    viaduct_set_subsystem(dev, 0x1234, 0xabcd);
    viaduct_set_bar(dev, 0, VIADUCT_MEMORY32, 0x2000);
    viaduct_set_bar(dev, 1, VIADUCT_IO, 64);
    viaduct_set_bar(dev, 2, VIADUCT_MEMORY64 | VIADUCT_PREFETCHABLE, 1 << 20);
    viaduct_set_intx(dev);
    viaduct_set_msi(dev, 4);
    viaduct_set_msix(dev, 5, 0, 0x1000, 0x1800);
    viaduct_add_capability(dev, 0x09, body, writable, sizeof body);
    if (conventional) {
        viaduct_set_conventional(dev);
    } else {
        viaduct_set_serial(dev, 0x1122334455667788);
        viaduct_add_extended_capability(dev, 0x0b, 1, extended, NULL, sizeof extended);
    }
    viaduct_set_handlers(dev, &handlers, NULL);
    if (viaduct_connect(dev, NULL) || viaduct_run(dev)) {
        fprintf(stderr, "showcase: %s\n", viaduct_error(dev));
        return 1;
    }
    return 0;
}
