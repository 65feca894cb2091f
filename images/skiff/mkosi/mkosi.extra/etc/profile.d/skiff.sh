# A greeting at each login on the live medium.
case " $(cat /proc/cmdline) " in
    *" skiff.live "*) echo "This is the skiff live medium. To install it: skiff-install" ;;
esac
